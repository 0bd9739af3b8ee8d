// Plain loads and stores, checked.
#pragma once
#include "emulator/global_memory.h"
#include "ptx/target.h"

namespace ptx {

DEVICE float load_shared(uint32_t address) { return emulator::running_block->load<float>(address, "load_shared"); }
DEVICE float2 load_shared2(uint32_t address) { return emulator::running_block->load<float2>(address, "load_shared2"); }
DEVICE float4 load_shared4(uint32_t address) { return emulator::running_block->load<float4>(address, "load_shared4"); }
DEVICE int load_shared_int(uint32_t address) { return emulator::running_block->load<int>(address, "load_shared_int"); }

DEVICE void store_shared(uint32_t address, float value) {
    emulator::running_block->store(address, value, "store_shared");
}
DEVICE void store_shared_int(uint32_t address, int value) {
    emulator::running_block->store(address, value, "store_shared_int");
}
DEVICE void store_shared4(uint32_t address, float4 v) { emulator::running_block->store(address, v, "store_shared4"); }

template <class T>
DEVICE T load_global(const T* pointer) {
    emulator::check_global_read(pointer, sizeof(T), alignof(T), "load_global");
    return *pointer;
}

template <class T>
DEVICE void store_global(T* pointer, T value) {
    emulator::check_landed(value, "store_global");
    emulator::check_global_write(pointer, sizeof(T), alignof(T), "store_global");
    *pointer = value;
}

DEVICE void add_global(float* pointer, float value) {
    emulator::check_landed(value, "add_global");
    emulator::check_global_write(pointer, sizeof(float), alignof(float), "add_global");
    *pointer += value;
}

DEVICE int fetch_add(int* pointer, int value) {
    emulator::running_block->scheduler.step(16);
    emulator::check_global_read(pointer, sizeof(int), alignof(int), "fetch_add");
    const int before = *pointer;
    *pointer += value;
    return before;
}

}  // namespace ptx
