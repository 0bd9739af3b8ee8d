// Plain loads and stores, checked.
#pragma once
#include "emulator/global_memory.h"
#include "ptx/target.h"

namespace ptx {

template <class T>
DEVICE T load_shared_as(uint32_t address, const char* operation) {
    emulator::running_block->before_read(address, sizeof(T), operation);
    return emulator::running_block->shared.load<T>(address);
}

template <class T>
DEVICE void store_shared_as(uint32_t address, T value, const char* operation) {
    emulator::running_block->before_write(address, sizeof(T), operation);
    emulator::running_block->shared.store(address, value);
}

DEVICE float load_shared(uint32_t address) { return load_shared_as<float>(address, "load_shared"); }
DEVICE float2 load_shared2(uint32_t address) { return load_shared_as<float2>(address, "load_shared2"); }
DEVICE float4 load_shared4(uint32_t address) { return load_shared_as<float4>(address, "load_shared4"); }
DEVICE void store_shared(uint32_t address, float value) { store_shared_as(address, value, "store_shared"); }
DEVICE void store_shared4(uint32_t address, float4 v) { store_shared_as(address, v, "store_shared4"); }

template <class T>
DEVICE T load_global(const T* pointer) {
    emulator::check_global_read(pointer, sizeof(T), alignof(T), "load_global");
    return *pointer;
}

template <class T>
DEVICE void store_global(T* pointer, T value) {
    emulator::check_global_write(pointer, sizeof(T), alignof(T), "store_global");
    *pointer = value;
}

}  // namespace ptx
