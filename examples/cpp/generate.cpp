// Runs an exported artifact (growing cache, float32) greedily with onnxruntime's C++ API: prefill once, then decode.
// Usage: generate ARTIFACT MAX_NEW_TOKENS EOS ID [ID ...]     prints the new token ids; EOS -1: no end of text
// Exit status: 0 success, 1 onnxruntime failed, 2 what was asked for cannot be computed; one line says why.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

int64_t number(const std::string& text, int64_t least, const std::string& what) {
  char* end = nullptr;
  errno = 0;
  const int64_t value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end || errno || value < least || value > INT32_MAX)
    throw Refused(what + " must be a whole number of at least " + std::to_string(least) + ", not '" + text +
                  "'; usage: generate ARTIFACT MAX_NEW_TOKENS EOS ID [ID ...]");
  return value;
}

// The model's context. One number is all that this program needs of the manifest, so it has no JSON reader.
int64_t context_of(const std::string& artifact) {
  const std::string file = artifact + "/lucid.json", key = "\"max_position_embeddings\":";
  std::ifstream stream(file);
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  const size_t at = text.find(key);
  const int64_t context = at == std::string::npos ? 0 : std::strtoll(text.c_str() + at + key.size(), nullptr, 10);
  if (context < 1) throw Refused(file + " cannot be read or names no max_position_embeddings; is it an artifact?");
  return context;
}

// Refuses caches that hold anything but a float32 row for each token in both graphs: static ones, windows, states, int8.
void check_cache(const Ort::Session& stage, const std::vector<std::string>& inputs) {
  const std::string advice = "; this program takes growing float32 caches of models without windows and states";
  Ort::AllocatorWithDefaultOptions allocator;
  if (stage.GetInputCount() != inputs.size()) throw Refused("the decode graph has other inputs" + advice);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::string name = stage.GetInputNameAllocated(i, allocator).get();
    if (name != inputs[i]) throw Refused("the decode graph has the input " + name + advice);
    if (i < 3) continue;
    const Ort::TypeInfo type = stage.GetInputTypeInfo(i);
    const auto tensor = type.GetTensorTypeAndShapeInfo();
    std::vector<const char*> axes(tensor.GetDimensionsCount());
    tensor.GetSymbolicDimensions(axes.data(), axes.size());
    if (tensor.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || axes.size() != 4 ||
        std::string(axes[2]) != "past_sequence")
      throw Refused(name + " is no float32 row for each token" + advice);
  }
}

int main(int argc, char** argv) try {
  if (argc < 5) throw Refused("usage: generate ARTIFACT MAX_NEW_TOKENS EOS ID [ID ...]");
  const std::string artifact = argv[1];
  const int64_t most = number(argv[2], 1, "MAX_NEW_TOKENS");
  const int64_t eos = number(argv[3], -1, "EOS");
  std::vector<int64_t> ids;  // the tokens that run next: the prompt first, then the newest one
  for (int i = 4; i < argc; ++i) ids.push_back(number(argv[i], 0, "ID"));
  const int64_t context = context_of(artifact), prompt = static_cast<int64_t>(ids.size());
  if (prompt > context)
    throw Refused("the prompt has " + std::to_string(prompt) + " tokens; the model takes " + std::to_string(context));

  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // else onnxruntime sends telemetry; a value that you set stays
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
  Ort::Session prefill(env, (artifact + "/prefill.onnx").c_str(), Ort::SessionOptions{});
  Ort::Session decode(env, (artifact + "/decode.onnx").c_str(), Ort::SessionOptions{});
  Ort::AllocatorWithDefaultOptions allocator;
  const auto cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

  // Both graphs have the inputs input_ids, attention_mask, position_ids, then per layer K and Y; outputs: logits, K and Y.
  std::vector<std::string> input_names, output_names;
  for (size_t i = 0; i < prefill.GetInputCount(); ++i)
    input_names.push_back(prefill.GetInputNameAllocated(i, allocator).get());
  for (size_t i = 0; i < prefill.GetOutputCount(); ++i)
    output_names.push_back(prefill.GetOutputNameAllocated(i, allocator).get());
  check_cache(prefill, input_names);
  check_cache(decode, input_names);
  std::vector<const char*> inputs, outputs;
  for (const auto& name : input_names) inputs.push_back(name.c_str());
  for (const auto& name : output_names) outputs.push_back(name.c_str());

  const Ort::TypeInfo logits_type = prefill.GetOutputTypeInfo(0);
  const int64_t vocabulary = logits_type.GetTensorTypeAndShapeInfo().GetShape()[2];
  for (const int64_t id : ids)
    if (id >= vocabulary)
      throw Refused("token id " + std::to_string(id) + " is outside the vocabulary (0 to " +
                    std::to_string(vocabulary - 1) + ")");
  std::vector<Ort::Value> cache;
  for (size_t i = 3; i < inputs.size(); ++i) {
    const Ort::TypeInfo type = prefill.GetInputTypeInfo(i);
    std::vector<int64_t> shape = type.GetTensorTypeAndShapeInfo().GetShape();
    shape[0] = 1, shape[2] = 0;  // [batch, kv_heads, past_sequence, head_dim]: nothing is cached yet
    cache.push_back(Ort::Value::CreateTensor<float>(allocator, shape.data(), shape.size()));
  }

  std::vector<int64_t> mask, positions;
  for (int64_t step = 0; step < most; ++step) {
    if (static_cast<int64_t>(mask.size() + ids.size()) > context) {
      std::cerr << "stopped: the context of " << context << " tokens is full\n";
      break;
    }
    positions.clear();
    for (size_t i = 0; i < ids.size(); ++i) positions.push_back(static_cast<int64_t>(mask.size() + i));
    mask.resize(mask.size() + ids.size(), 1);  // 1: a token, 0 would be padding
    std::vector<Ort::Value> feed;
    for (std::vector<int64_t>* data : {&ids, &mask, &positions}) {
      const int64_t size[] = {1, static_cast<int64_t>(data->size())};
      feed.push_back(Ort::Value::CreateTensor<int64_t>(cpu, data->data(), data->size(), size, 2));
    }
    for (auto& tensor : cache) feed.push_back(std::move(tensor));
    Ort::Session& stage = step == 0 ? prefill : decode;
    auto result = stage.Run(Ort::RunOptions{}, inputs.data(), feed.data(), feed.size(), outputs.data(), outputs.size());
    const int64_t rows = result[0].GetTensorTypeAndShapeInfo().GetShape()[1];  // 1, or all with export --logits all
    const float* logits = result[0].GetTensorData<float>() + (rows - 1) * vocabulary;
    const int64_t token = std::max_element(logits, logits + vocabulary) - logits;
    if (token == eos) break;
    std::cout << token << ' ' << std::flush;
    cache.assign(std::make_move_iterator(result.begin() + 1), std::make_move_iterator(result.end()));
    ids.assign(1, token);
  }
  std::cout << '\n';
} catch (const Refused& error) {
  std::cerr << error.what() << '\n';
  return 2;
} catch (const Ort::Exception& error) {
  std::cerr << "onnxruntime: " << error.what() << '\n';
  return 1;
}
