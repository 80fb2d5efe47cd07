// What both programs share: reading a WAV file, and the rule that makes one LLR of a recording's windows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace recording {

inline std::uint32_t number(const std::vector<char>& bytes, std::size_t at, int size) {
  if (at + size > bytes.size()) throw std::runtime_error("the file ends too early: copy it again");
  std::uint32_t value = 0;
  for (int i = 0; i < size; ++i) value |= std::uint32_t(static_cast<unsigned char>(bytes[at + i])) << (8 * i);
  return value;
}

// Samples in [-1, 1] of a WAV file: PCM of 16, 24 or 32 bits or 32-bit floats, channels averaged.
inline std::vector<float> read_wav(const std::string& path, std::uint32_t wanted_rate) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (bytes.size() < 12 || std::memcmp(bytes.data(), "RIFF", 4) || std::memcmp(bytes.data() + 8, "WAVE", 4))
    throw std::runtime_error(path + ": no WAV file");
  std::uint32_t kind = 0, channels = 0, rate = 0, bits = 0;
  std::size_t at = 12;
  while (at + 8 <= bytes.size()) {
    const std::string name(bytes.data() + at, 4);
    const std::size_t start = at + 8;
    std::size_t size = number(bytes, at + 4, 4);
    if (name == "fmt ") {
      kind = number(bytes, start, 2);
      channels = number(bytes, start + 2, 2);
      rate = number(bytes, start + 4, 4);
      bits = number(bytes, start + 14, 2);
      if (kind == 0xFFFE) kind = number(bytes, start + 24, 2);  // extensible: the real kind comes later
    } else if (name == "data") {
      size = std::min(size, bytes.size() - start);  // a stream's header does not know its length
      const bool floats = kind == 3 && bits == 32;
      const bool integers = kind == 1 && (bits == 16 || bits == 24 || bits == 32);
      if (!(floats || integers) || channels == 0)
        throw std::runtime_error(path + ": need PCM of 16, 24 or 32 bits, or 32-bit floats");
      if (rate != wanted_rate)
        throw std::runtime_error(path + ": has " + std::to_string(rate) + " Hz, need " + std::to_string(wanted_rate) +
                                 ": resample it");
      const std::size_t width = bits / 8, count = size / (width * channels);
      std::vector<float> wave(count);
      for (std::size_t t = 0; t < count; ++t) {
        double sum = 0;
        for (std::uint32_t c = 0; c < channels; ++c) {
          const std::uint32_t raw = number(bytes, start + (t * channels + c) * width, int(width));
          if (floats) {
            float value;
            std::memcpy(&value, &raw, 4);
            sum += value;
          } else {
            sum += std::int32_t(raw << (32 - bits)) / 2147483648.0;
          }
        }
        wave[t] = std::clamp(float(sum / channels), -1.0f, 1.0f);
      }
      if (wave.empty()) throw std::runtime_error(path + ": has no samples");
      return wave;
    }
    at = start + size + (size & 1);
  }
  throw std::runtime_error(path + ": has no samples");
}

// How windows become one LLR: the numbers of `Evidence`, as the model's file tells them.
struct Evidence {
  double window, shortest, rho, a, b;
  double rate = 16000;

  double llr(double mean_score, double samples) const {
    const double seconds = samples / rate;
    const double n = std::max(seconds / window, std::min(1.0, seconds / shortest));
    return n / (1 + (n - 1) * rho) * (a * mean_score + b);
  }

  // First sample and length of windows that cover a recording, each half over the next.
  std::vector<std::pair<std::size_t, std::size_t>> plan(std::size_t total) const {
    const std::size_t size = std::size_t(std::nearbyint(window * rate));
    if (total <= size) return {{0, total}};
    const std::size_t n = 1 + (2 * (total - size) + size - 1) / size;
    std::vector<std::pair<std::size_t, std::size_t>> found;
    for (std::size_t i = 0; i < n; ++i) found.push_back({i * (total - size) / (n - 1), size});
    return found;
  }
};

// The LLR of a whole recording; `score` gives that of some samples, padded with zeros to `padded` of them.
template <class Score>
double judge(const std::vector<float>& wave, const Evidence& evidence, std::size_t shortest_input, Score score) {
  double sum = 0;
  const auto plan = evidence.plan(wave.size());
  for (const auto& [first, size] : plan) {
    std::vector<float> part(wave.begin() + first, wave.begin() + first + size);
    part.resize(std::max(size, shortest_input), 0.0f);
    sum += score(part, std::int64_t(size));
  }
  return evidence.llr(sum / plan.size(), double(wave.size()));
}

inline double real(const std::string& text, const char* name) {
  if (text.empty()) throw std::runtime_error(std::string("the model says no ") + name + ": export a calibrated detector");
  return std::stod(text);
}

}  // namespace recording
