// Calls the CPU operators from several threads at once, each on several threads, and compares the bits with those of
// one thread. Built with ThreadSanitizer, it fails on any race.
//
// Arguments: how many random cases, and the number of the first.
#include "threads.h"

#include "common/methods.h"

#include <torch/csrc/stable/tensor.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

namespace {

using Random = std::mt19937;
using Results = std::vector<std::vector<char>>;

constexpr uint32_t THREADS[] = {1, 2, 3, 7};

int64_t pick(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

int64_t product(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<int64_t>());
}

// Random values of a dtype, whose axes lie in memory in the given order, outermost first. Some are expanded along the
// last two axes, as gradients are behind a global average pooling.
AtenTensorOpaque tensor(Random& random, const std::vector<int64_t>& sizes, const std::vector<size_t>& order,
                        int32_t dtype, bool expanded = false) {
  const int64_t bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  auto memory = std::make_shared<std::vector<char>>(product(sizes) * bytes);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < product(sizes); ++i) {
    const float value = normal(random);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // Any 16 bits with a small exponent are a finite number, in float16 as in bfloat16.
    const uint16_t half = static_cast<uint16_t>(bits >> 16 & 0xbfff);
    std::memcpy(memory->data() + i * bytes, bytes == 4 ? static_cast<const void*>(&value) : &half, bytes);
  }
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t axis = order.size(); axis-- > 0; stride *= sizes[order[axis]]) strides[order[axis]] = stride;
  if (expanded) strides[sizes.size() - 1] = strides[sizes.size() - 2] = 0;
  return {sizes, strides, dtype, memory};
}

Results call(Boxed function, std::vector<StableIValue> arguments, size_t inputs, size_t results) {
  for (size_t i = 0; i < inputs; ++i)  // the operator takes its inputs away
    arguments[i] =
        torch::stable::detail::from(new AtenTensorOpaque(*torch::stable::detail::to<AtenTensorHandle>(arguments[i])));
  const size_t count = arguments.size();
  arguments.resize(std::max(count, results));
  function(arguments.data(), count, results);
  Results found;
  for (size_t i = 0; i < results; ++i) {
    const auto result = torch::stable::detail::to<AtenTensorHandle>(arguments[i]);
    found.push_back(*result->memory);
    delete result;
  }
  return found;
}

// One operator with its arguments.
struct Case {
  std::string name;
  std::vector<AtenTensorOpaque> inputs;
  std::vector<int64_t> numbers;
  size_t results;

  Results run(uint32_t threads) const {
    use_threads(threads);
    std::vector<StableIValue> arguments;
    for (const AtenTensorOpaque& input : inputs)
      arguments.push_back(torch::stable::detail::from(const_cast<AtenTensorHandle>(&input)));
    for (const int64_t number : numbers) arguments.push_back(static_cast<StableIValue>(number));
    return call(operator_named(name), arguments, inputs.size(), results);
  }
};

Case cam_case(Random& random) {
  const int32_t dtypes[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_float16(), aoti_torch_dtype_bfloat16()};
  const int64_t channels[] = {1, 3, 64, 130, 700};
  const int32_t dtype = dtypes[pick(random, 0, 2)];
  const int64_t batch = pick(random, 1, 5), targets = pick(random, 0, 3);
  const std::vector<int64_t> maps{channels[pick(random, 0, 4)], pick(random, 1, 15), pick(random, 1, 15)};
  const bool channels_last = pick(random, 0, 2) == 0, expanded = pick(random, 0, 2) == 0;
  const auto make = [&](std::vector<int64_t> sizes, bool expanded) {
    const size_t axes = sizes.size();
    sizes.insert(sizes.end(), maps.begin(), maps.end());
    std::vector<size_t> order(sizes.size());
    std::iota(order.begin(), order.end(), 0);
    if (channels_last) std::rotate(order.begin() + axes, order.begin() + axes + 1, order.end());
    return tensor(random, sizes, order, dtype, expanded);
  };
  return {"cam",
          {make({batch}, false),
           make(targets == 0 ? std::vector<int64_t>{batch} : std::vector<int64_t>{batch, targets}, expanded)},
          {pick(random, 1, 300), pick(random, 1, 300), pick(random, 0, gradcam_fast::method_count - 1),
           pick(random, 0, gradcam_fast::normalize_count - 1), pick(random, 0, 1)},
          3};
}

Case skinny_mm_case(Random& random) {
  const int64_t inner = pick(random, 1, 40);
  return {"skinny_mm",
          {tensor(random, {pick(random, 1, 5), inner}, {0, 1}, aoti_torch_dtype_float32()),
           tensor(random, {inner, pick(random, 1, 3000)}, {0, 1}, aoti_torch_dtype_float32())},
          {},
          1};
}

// Shows that races are found: two threads write to one number without a lock.
int race() {
  int number = 0;
  std::thread other([&] { ++number; });
  ++number;
  other.join();
  return number;
}

}  // namespace

int main(int count, char** words) {
  if (std::getenv("GRADCAM_FAST_RACE")) return race() == 2 ? 0 : 1;
  const long cases = count > 1 ? std::atol(words[1]) : 100, first = count > 2 ? std::atol(words[2]) : 0;
  for (long number = first; number < first + cases; ++number) {
    Random random(static_cast<uint32_t>(number));
    const Case one = number % 8 == 7 ? skinny_mm_case(random) : cam_case(random);
    const Results expected = one.run(1);
    std::vector<int> same(std::size(THREADS));
    std::vector<std::thread> callers;
    for (size_t caller = 0; caller < std::size(THREADS); ++caller)
      callers.emplace_back([&, caller] { same[caller] = one.run(THREADS[caller]) == expected; });
    for (std::thread& caller : callers) caller.join();
    for (size_t caller = 0; caller < std::size(THREADS); ++caller)
      if (!same[caller]) {
        std::printf("case %ld: other bits on %u threads\n", number, THREADS[caller]);
        return 1;
      }
  }
  std::printf("%ld cases\n", cases);
  return 0;
}
