// Specifiers of functions that are always inlined: host functions, and functions that CUDA compiles for host and
// device.
#pragma once

#if defined(__GNUC__)
#define GCF_HOST_INLINE inline __attribute__((always_inline))
#else
#define GCF_HOST_INLINE inline
#endif

#if defined(__CUDACC__)
#define GCF_INLINE __host__ __device__ __forceinline__
#else
#define GCF_INLINE GCF_HOST_INLINE
#endif
