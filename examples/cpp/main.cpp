// Explains a photo with a package that gradcam_fast exported. Prints the classes, and writes a heatmap for each.
//
//     explain model.pt2 photo.ppm heatmap.pgm [libgradcam_fast_cpu.so]
//
// The last argument is the compiled operator (gradcam-fast --library cpu); self-contained packages need none.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "photo.h"

static void write_pgm(const std::filesystem::path& path, const at::Tensor& heatmap) {
  const at::Tensor pixels = heatmap.mul(255).round().to(at::kByte).contiguous();
  std::ofstream file(path, std::ios::binary);
  file << "P5\n" << pixels.size(1) << ' ' << pixels.size(0) << "\n255\n";
  file.write(reinterpret_cast<const char*>(pixels.const_data_ptr<uint8_t>()), pixels.numel());
  if (!file) throw std::runtime_error("cannot write " + path.string());
}

static std::vector<std::string> lines(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> found;
  for (std::string line; std::getline(stream, line);) found.push_back(line);
  return found;
}

static void explain(const std::string& model, const std::string& photo, std::filesystem::path out) {
  torch::inductor::AOTIModelPackageLoader package(model);
  const auto facts = package.get_metadata();
  const at::Tensor input =
      prepare(read_ppm(photo), facts.at("preprocessing")).to(at::Device(facts.at("AOTI_DEVICE_KEY")));

  // One image gives heatmap (1,H,W), logits (1,N), class (1,) and score (1,); K classes of it (1,K,H,W), (1,K) and
  // (1,K).
  const std::vector<at::Tensor> results = package.run({input});
  const at::Tensor heatmaps = results.at(0).cpu().flatten(0, -3);
  const at::Tensor classes = results.at(2).cpu().flatten(), scores = results.at(3).cpu().flatten();
  const auto names = lines(facts.at("class_names"));
  const std::string stem = out.stem();
  for (int64_t i = 0; i < classes.numel(); ++i) {
    const auto number = classes[i].item<int64_t>();
    if (i > 0) out.replace_filename(stem + "-" + std::to_string(i + 1) + ".pgm");
    write_pgm(out, heatmaps[i]);
    const auto name = number < static_cast<int64_t>(names.size()) ? names[number] : "class";
    std::cout << name << " (" << number << "): score " << scores[i].item<float>() << ", heatmap " << out.string()
              << '\n';
  }
}

int main(int count, char** arguments) try {
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 0);  // or the native code reads whatever it is given
  if (count < 4) throw std::runtime_error("give model.pt2 photo.ppm heatmap.pgm [libgradcam_fast_cpu.so]");
  for (int i = 4; i < count; ++i)
    if (dlopen(arguments[i], RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
  explain(arguments[1], arguments[2], arguments[3]);
  return 0;
} catch (const c10::Error& error) {
  std::cerr << "explain: " << error.what_without_backtrace() << '\n';
  return 1;
} catch (const std::exception& error) {
  std::cerr << "explain: " << error.what() << '\n';
  return 1;
}
