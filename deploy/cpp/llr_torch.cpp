// llr_torch MODEL.pt FILE.wav...: prints the log-likelihood ratio of each recording. Needs LibTorch and nothing else.
#include <ATen/core/ivalue.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <cstdio>
#include <exception>

#include "recording.hpp"

int main(int count, char** words) {
  if (count < 3) {
    std::fprintf(stderr, "usage: llr_torch MODEL.pt FILE.wav...\n");
    return 2;
  }
  try {
    torch::jit::ExtraFilesMap about;
    for (const char* name : {"sample_rate", "shortest_input", "window", "shortest", "rho", "a", "b"}) about[name] = "";
    torch::jit::Module model = torch::jit::load(words[1], c10::kCPU, about);
    const auto value = [&](const char* name) { return recording::real(about[name], name); };
    const recording::Evidence evidence{value("window"), value("shortest"), value("rho"), value("a"), value("b")};
    const c10::InferenceMode guard;
    for (int i = 2; i < count; ++i) {
      const auto wave = recording::read_wav(words[i], std::uint32_t(value("sample_rate")));
      const double llr = recording::judge(
          wave, evidence, std::size_t(value("shortest_input")), [&](std::vector<float>& part, std::int64_t length) {
            std::vector<c10::IValue> inputs{at::from_blob(part.data(), {1, std::int64_t(part.size())}),
                                            at::full({1}, length, at::kLong)};
            const auto found = model.forward(inputs);
            return double(found.toTuple()->elements()[1].toTensor().item<float>());  // llr, score
          });
      std::printf("%.6f %s\n", llr, words[i]);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
