// Plain loads and stores: shared memory by its 32-bit address, global memory by pointer.
#pragma once
#include "ptx/target.h"

namespace ptx {

DEVICE float load_shared(uint32_t address) {
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
}

DEVICE float2 load_shared2(uint32_t address) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
    return v;
}

DEVICE float4 load_shared4(uint32_t address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

DEVICE void store_shared(uint32_t address, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

DEVICE int load_shared_int(uint32_t address) {
    int value;
    asm volatile("ld.shared.s32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}

DEVICE void store_shared_int(uint32_t address, int value) {
    asm volatile("st.shared.s32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

DEVICE void store_shared4(uint32_t address, float4 v) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}

template <class T>
DEVICE T load_global(const T* pointer) {
    return *pointer;
}

template <class T>
DEVICE void store_global(T* pointer, T value) {
    *pointer = value;
}

DEVICE void add_global(float* pointer, float value) { atomicAdd(pointer, value); }

// Adds to global memory as one step; returns what was there.
DEVICE int fetch_add(int* pointer, int value) { return atomicAdd(pointer, value); }

}  // namespace ptx
