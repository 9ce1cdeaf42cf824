// Photos as the input of a network: reads PPM files and prepares them as the package says.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// The numbers that follow "key" in a text of JSON: those of a list, one, or none for null.
inline std::vector<double> numbers(const std::string& json, const std::string& key) {
  const auto found = json.find('"' + key + "\":");
  if (found == std::string::npos) throw std::runtime_error("the package does not say the " + key + " of its photos");
  const auto begin = json.find_first_not_of(" [", found + key.size() + 3);
  std::string text = json.substr(begin, json.find_first_of("]}\"", begin) - begin);
  for (char& character : text)
    if (character == ',') character = ' ';
  std::istringstream stream(text);
  std::vector<double> values;
  for (double value; stream >> value;) values.push_back(value);
  return values;
}

// A binary PPM (P6) without comments as (1,3,H,W) uint8.
inline at::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, brightest = 0;
  if (!(file >> kind >> width >> height >> brightest) || kind != "P6" || brightest != 255)
    throw std::runtime_error(path + " is no binary PPM of 8 bits");
  file.get();
  at::Tensor pixels = at::empty({1, height, width, 3}, at::kByte);
  if (!file.read(reinterpret_cast<char*>(pixels.mutable_data_ptr<uint8_t>()), pixels.numel()))
    throw std::runtime_error(path + " is cut off");
  return pixels.permute({0, 3, 1, 2});
}

// The photo (1,3,H,W) uint8 resized, cropped to the middle, and normalised; `how` is the package's "preprocessing".
inline at::Tensor prepare(const at::Tensor& photo, const std::string& how) {
  const auto size = numbers(how, "size"), crop = numbers(how, "crop");
  const int64_t height = size.at(0), width = size.at(1);
  if (how.find("letterbox") != std::string::npos) throw std::runtime_error("the package pads photos");
  int64_t rows = std::floor(height / crop.at(0) + 1e-6), columns = std::floor(width / crop.at(0) + 1e-6);
  if (how.find("\"stretch\"") == std::string::npos) {  // the shorter side fits
    const int64_t h = photo.size(2), w = photo.size(3);
    if (rows * w >= columns * h)
      columns = std::max(columns, rows * w / h);
    else
      rows = std::max(rows, columns * h / w);
  }
  const std::vector<int64_t> sides{rows, columns};
  const bool cubic = how.find("bicubic") != std::string::npos;
  const at::Tensor resized =
      cubic ? at::_upsample_bicubic2d_aa(photo, sides, false) : at::_upsample_bilinear2d_aa(photo, sides, false);
  const at::Tensor seen = resized.narrow(2, std::lrint((rows - height) / 2.0), height)
                              .narrow(3, std::lrint((columns - width) / 2.0), width);
  const auto per_channel = [](const std::vector<double>& values) {
    return at::tensor(values, at::kFloat).view({1, -1, 1, 1});
  };
  return ((seen.to(at::kFloat) / 255 - per_channel(numbers(how, "mean"))) / per_channel(numbers(how, "std")))
      .contiguous();
}
