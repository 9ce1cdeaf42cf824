// Whole numbers divided by others that are known before the launch, and wholes in parts. Dividing takes a GPU long,
// multiplying does not.
#pragma once

#include "common/inline.h"

#include <cstdint>

namespace gradcam_fast::gpu {

// Divides what is below 2^31 and not negative. With 2^shift the first power of two that is no less than the divisor d,
// and a multiplier above 2^(31 + shift) / d by at most one, the product is above the quotient by less than 1 / d
// (Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994, theorem 4.2).
class Divisor {
 public:
  explicit Divisor(int divisor) : divisor_(divisor) {
    while ((int64_t{1} << shift_) < divisor) ++shift_;
    multiplier_ = static_cast<uint32_t>((uint64_t{1} << (31 + shift_)) / divisor + 1);
  }
  GCF_INLINE operator int() const { return divisor_; }
  GCF_INLINE int quotient(int number) const {
    return static_cast<int>(static_cast<uint32_t>(number) * static_cast<uint64_t>(multiplier_) >> (31 + shift_));
  }
  GCF_INLINE int rest(int number) const { return number - quotient(number) * divisor_; }

 private:
  int divisor_, shift_ = 0;
  uint32_t multiplier_;
};

// A whole in so many parts. The first have one more if it does not go round evenly.
struct Parts {
  int each, more;

  GCF_INLINE Parts(int whole, const Divisor& parts) : each(parts.quotient(whole)), more(parts.rest(whole)) {}
  GCF_INLINE int begin(int part) const { return each * part + (part < more ? part : more); }
};

}  // namespace gradcam_fast::gpu
