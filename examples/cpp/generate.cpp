// Runs an exported artifact (growing cache, float32) greedily with onnxruntime's C++ API: prefill once, then decode.
// Usage: generate ARTIFACT MAX_NEW_TOKENS EOS ID [ID ...]     prints the new token ids
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
  if (argc < 5) {
    std::cerr << "usage: generate ARTIFACT MAX_NEW_TOKENS EOS ID [ID ...]\n";
    return 2;
  }
  const std::string artifact = argv[1];
  const int most = std::stoi(argv[2]);
  const int64_t eos = std::stoll(argv[3]);
  std::vector<int64_t> ids;  // the tokens that run next: the prompt first, then the newest one
  for (int i = 4; i < argc; ++i) ids.push_back(std::stoll(argv[i]));

  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // onnxruntime reports to its maker otherwise; a value of yours stays
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
  Ort::Session prefill(env, (artifact + "/prefill.onnx").c_str(), Ort::SessionOptions{});
  Ort::Session decode(env, (artifact + "/decode.onnx").c_str(), Ort::SessionOptions{});
  Ort::AllocatorWithDefaultOptions allocator;
  const auto cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

  // Both graphs have the inputs input_ids, attention_mask, position_ids, then per layer K and Y; outputs: logits, K and Y.
  std::vector<Ort::AllocatedStringPtr> names;  // own the text that the two lists point to
  std::vector<const char*> inputs, outputs;
  for (size_t i = 0; i < prefill.GetInputCount(); ++i)
    inputs.push_back(names.emplace_back(prefill.GetInputNameAllocated(i, allocator)).get());
  for (size_t i = 0; i < prefill.GetOutputCount(); ++i)
    outputs.push_back(names.emplace_back(prefill.GetOutputNameAllocated(i, allocator)).get());
  std::vector<int64_t> shape = prefill.GetInputTypeInfo(3).GetTensorTypeAndShapeInfo().GetShape();
  shape[0] = 1, shape[2] = 0;  // [batch, kv_heads, past_sequence, head_dim]: nothing is cached yet
  std::vector<Ort::Value> cache;
  for (size_t i = 3; i < inputs.size(); ++i)
    cache.push_back(Ort::Value::CreateTensor<float>(allocator, shape.data(), shape.size()));

  std::vector<int64_t> mask, positions;
  for (int step = 0; step < most; ++step) {
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
    const int64_t vocabulary = result[0].GetTensorTypeAndShapeInfo().GetShape()[2];
    const float* logits = result[0].GetTensorData<float>();
    const int64_t token = std::max_element(logits, logits + vocabulary) - logits;
    if (token == eos) break;
    std::cout << token << ' ' << std::flush;
    cache.assign(std::make_move_iterator(result.begin() + 1), std::make_move_iterator(result.end()));
    ids.assign(1, token);
  }
  std::cout << '\n';
} catch (const Ort::Exception& error) {
  std::cerr << "onnxruntime: " << error.what() << '\n';
  return 1;
}
