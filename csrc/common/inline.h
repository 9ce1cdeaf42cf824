// The specifiers of functions that are always inlined: on the host, and where CUDA compiles them for both sides.
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
