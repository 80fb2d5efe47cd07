// As much of ONNX Runtime's C interface as llr_onnxruntime calls, for machines that have the library and no header.
//
// The interface is a table of functions to which new ones are only ever appended, so a function's place in it is
// fixed for all versions (https://onnxruntime.ai/docs/api/c/). The places are named here; `skip` counts what lies
// between them. With the official header on the include path this file is not used.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtEnv;
struct OrtSession;
struct OrtSessionOptions;
struct OrtRunOptions;
struct OrtMemoryInfo;
struct OrtValue;
struct OrtModelMetadata;
struct OrtAllocator;

enum { ORT_LOGGING_LEVEL_ERROR = 3 };
enum { OrtArenaAllocator = 1, OrtMemTypeDefault = 0 };
enum { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7 };

struct OrtApi {
  using Status = OrtStatus*;
  using Anything = void (*)();

  Anything skip_0[2];
  const char* (*GetErrorMessage)(const OrtStatus*);                                                      // 2
  Status (*CreateEnv)(int, const char*, OrtEnv**);                                                       // 3
  Anything skip_4[3];
  Status (*CreateSession)(const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**);           // 7
  Anything skip_8[1];
  Status (*Run)(OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, std::size_t,
                const char* const*, std::size_t, OrtValue**);                                            // 9
  Status (*CreateSessionOptions)(OrtSessionOptions**);                                                   // 10
  Anything skip_11[13];
  Status (*SetIntraOpNumThreads)(OrtSessionOptions*, int);                                               // 24
  Anything skip_25[24];
  Status (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void*, std::size_t, const std::int64_t*,
                                           std::size_t, int, OrtValue**);                                // 49
  Anything skip_50[1];
  Status (*GetTensorMutableData)(OrtValue*, void**);                                                     // 51
  Anything skip_52[17];
  Status (*CreateCpuMemoryInfo)(int, int, OrtMemoryInfo**);                                              // 69
  Anything skip_70[6];
  Status (*AllocatorFree)(OrtAllocator*, void*);                                                         // 76
  Anything skip_77[1];
  Status (*GetAllocatorWithDefaultOptions)(OrtAllocator**);                                              // 78
  Anything skip_79[13];
  void (*ReleaseEnv)(OrtEnv*);                                                                           // 92
  void (*ReleaseStatus)(OrtStatus*);                                                                     // 93
  void (*ReleaseMemoryInfo)(OrtMemoryInfo*);                                                             // 94
  void (*ReleaseSession)(OrtSession*);                                                                   // 95
  void (*ReleaseValue)(OrtValue*);                                                                       // 96
  Anything skip_97[3];
  void (*ReleaseSessionOptions)(OrtSessionOptions*);                                                     // 100
  Anything skip_101[10];
  Status (*SessionGetModelMetadata)(const OrtSession*, OrtModelMetadata**);                              // 111
  Anything skip_112[4];
  Status (*ModelMetadataLookupCustomMetadataMap)(const OrtModelMetadata*, OrtAllocator*, const char*, char**);  // 116
  Anything skip_117[1];
  void (*ReleaseModelMetadata)(OrtModelMetadata*);                                                       // 118
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

extern "C" const OrtApiBase* OrtGetApiBase() noexcept;
