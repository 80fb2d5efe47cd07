// llr_onnxruntime MODEL.onnx FILE.wav...: prints the log-likelihood ratio of each recording, through the C API of
// ONNX Runtime.
#include <cstdio>
#include <exception>

#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#else
#include "onnxruntime_slots.hpp"  // the Python package has the library, but no header
#endif

#include "recording.hpp"

namespace {

const OrtApi* api = OrtGetApiBase()->GetApi(13);  // what is used here is older than that

void check(OrtStatus* status) {
  if (!status) return;
  const std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw std::runtime_error(message);
}

std::string about(OrtSession* session, OrtAllocator* allocator, const char* name) {
  OrtModelMetadata* metadata = nullptr;
  char* found = nullptr;
  check(api->SessionGetModelMetadata(session, &metadata));
  check(api->ModelMetadataLookupCustomMetadataMap(metadata, allocator, name, &found));
  const std::string text = found ? found : "";
  if (found) check(api->AllocatorFree(allocator, found));
  api->ReleaseModelMetadata(metadata);
  return text;
}

}  // namespace

int main(int count, char** words) {
  if (count < 3) {
    std::fprintf(stderr, "usage: llr_onnxruntime MODEL.onnx FILE.wav...\n");
    return 2;
  }
  try {
    if (!api) throw std::runtime_error("this ONNX Runtime is too old");
    OrtEnv* env = nullptr;
    OrtSessionOptions* options = nullptr;
    OrtSession* session = nullptr;
    OrtAllocator* allocator = nullptr;
    OrtMemoryInfo* memory = nullptr;
    check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "wedefense_nb", &env));
    check(api->CreateSessionOptions(&options));
    check(api->SetIntraOpNumThreads(options, 1));
    check(api->CreateSession(env, words[1], options, &session));
    check(api->GetAllocatorWithDefaultOptions(&allocator));
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    const auto value = [&](const char* name) { return recording::real(about(session, allocator, name), name); };
    const recording::Evidence evidence{value("window"), value("shortest"), value("rho"), value("a"), value("b")};
    const char* inputs[] = {"wave", "lengths"};
    const char* outputs[] = {"score"};
    for (int i = 2; i < count; ++i) {
      const auto wave = recording::read_wav(words[i], std::uint32_t(value("sample_rate")));
      const double llr = recording::judge(
          wave, evidence, std::size_t(value("shortest_input")), [&](std::vector<float>& part, std::int64_t length) {
            const std::int64_t shape[] = {1, std::int64_t(part.size())}, one[] = {1};
            OrtValue* given[2] = {nullptr, nullptr};
            OrtValue* found = nullptr;
            check(api->CreateTensorWithDataAsOrtValue(memory, part.data(), part.size() * sizeof(float), shape, 2,
                                                      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &given[0]));
            check(api->CreateTensorWithDataAsOrtValue(memory, &length, sizeof(length), one, 1,
                                                      ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &given[1]));
            check(api->Run(session, nullptr, inputs, given, 2, outputs, 1, &found));
            float* score = nullptr;
            check(api->GetTensorMutableData(found, reinterpret_cast<void**>(&score)));
            const double result = *score;
            for (OrtValue* tensor : {given[0], given[1], found}) api->ReleaseValue(tensor);
            return result;
          });
      std::printf("%.6f %s\n", llr, words[i]);
    }
    api->ReleaseMemoryInfo(memory);
    api->ReleaseSession(session);
    api->ReleaseSessionOptions(options);
    api->ReleaseEnv(env);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
