#include "emulator/copies.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "emulator/block.h"
#include "emulator/global_memory.h"
#include "emulator/report.h"

namespace emulator {

namespace {

constexpr int TILE_ALIGNMENT = 128;
constexpr int RUN_ALIGNMENT = 16;

// The part of a box's row that lies inside of the tensor.
struct Clip {
    char* first = nullptr;
    int skipped = 0, count = 0;  // columns
};

Clip clip(const Tensor& map, const Place& place, int row) {
    const int64_t y = static_cast<int64_t>(place.row) + row;
    if (y < 0 || y >= map.sizes[1] || place.head < 0 || place.head >= map.sizes[2] || place.batch < 0 ||
        place.batch >= map.sizes[3])
        return {};
    const int64_t from = std::max<int64_t>(place.column, 0);
    const int64_t to = std::min<int64_t>(static_cast<int64_t>(place.column) + BOX_COLUMNS, map.sizes[0]);
    if (from >= to) return {};
    const char* first = map.base + from * ELEMENT_BYTES + y * map.strides[0] + place.head * map.strides[1] +
                        place.batch * map.strides[2];
    return {const_cast<char*>(first), static_cast<int>(from - place.column), static_cast<int>(to - from)};
}

void check_run(const void* pointer, int bytes, const char* operation) {
    if (bytes <= 0 || bytes % RUN_ALIGNMENT != 0)
        report(hazard::MISALIGNED, format("%s of %d bytes, which is no multiple of 16", operation, bytes));
    check_global(pointer, bytes, RUN_ALIGNMENT, operation);
}

}  // namespace

void Copies::begin_load(uint32_t destination, int bytes, uint32_t barrier) {
    const Epoch copy = block_.barriers.begin_copy(barrier, bytes);
    if (block_.checks)
        block_.shadow.write(destination, bytes, block_.order.clock(block_.scheduler.running()), copy, true);
}

void Copies::load_tile(uint32_t destination, const Tensor& map, uint32_t barrier, const Place& place) {
    block_.scheduler.step(16);
    const int bytes = map.box_rows * ROW_BYTES;
    block_.shared.check(destination, bytes, TILE_ALIGNMENT, "load_tile");
    begin_load(destination, bytes, barrier);
    for (int row = 0; row < map.box_rows; ++row) {
        const Clip inside = clip(map, place, row);
        if (inside.count > 0) check_global_read(inside.first, inside.count * ELEMENT_BYTES, ELEMENT_BYTES, "load_tile");
    }
    const Tensor tensor = map;
    for (int first = 0; first < map.box_rows;) {
        // Usually the whole box at once, sometimes in pieces.
        const int left = map.box_rows - first;
        const int rows = block_.random.below(2) == 0 ? left : 1 + block_.random.below(left);
        const auto copy_rows = [this, tensor, place, destination, first, rows] {
            for (int row = first; row < first + rows; ++row) {
                unsigned char line[ROW_BYTES] = {};
                const Clip inside = clip(tensor, place, row);
                if (inside.count > 0)
                    std::memcpy(line + inside.skipped * ELEMENT_BYTES, inside.first, inside.count * ELEMENT_BYTES);
                for (int i = 0; i < ROW_BYTES; i += 16)
                    std::memcpy(block_.shared.at(swizzle(destination + row * ROW_BYTES + i)), line + i, 16);
            }
        };
        land_later(barrier, rows * ROW_BYTES, copy_rows);
        first += rows;
    }
    block_.scheduler.step(16);
}

void Copies::load_bytes(uint32_t destination, const void* source, int bytes, uint32_t barrier) {
    block_.scheduler.step(16);
    block_.shared.check(destination, bytes, RUN_ALIGNMENT, "load_bytes");
    check_run(source, bytes, "load_bytes");
    check_global_read(source, bytes, RUN_ALIGNMENT, "load_bytes");
    begin_load(destination, bytes, barrier);
    land_later(barrier, bytes,
               [this, destination, source, bytes] { std::memcpy(block_.shared.at(destination), source, bytes); });
    block_.scheduler.step(16);
}

void Copies::land_later(uint32_t barrier, int bytes, std::function<void()> copy_bytes) {
    block_.scheduler.post([this, barrier, bytes, copy_bytes] {
        copy_bytes();
        block_.barriers.land(barrier, bytes);
    });
}

Copies::Storer& Copies::running_storer() {
    const int thread = block_.scheduler.running();
    Storer& storer = storers_[thread];
    if (storer.component < 0) storer.component = block_.order.components.add(Actor::STORES, thread);
    return storer;
}

void Copies::begin_store(uint32_t source, int bytes) {
    if (!block_.checks) return;
    Storer& storer = running_storer();
    const VectorClock& clock = block_.order.clock(block_.scheduler.running());
    block_.shadow.check_read(source, bytes, clock, true);
    const auto group = static_cast<uint32_t>(storer.groups.size());
    block_.shadow.mark_read(source, bytes, epoch(storer.component, group + 1), clock);
}

void Copies::queue_store(std::function<Buffer()> read, std::function<void(const Buffer&)> write) {
    Storer& storer = running_storer();
    storer.open.push_back([this, &storer, read, write](Group& group) {
        ++group.unread;
        ++group.unwritten;
        block_.scheduler.post([this, &storer, &group, read, write] {
            const auto buffer = std::make_shared<Buffer>(read());
            --group.unread;
            block_.scheduler.wake(storer.waiting);
            block_.scheduler.post([this, &storer, &group, write, buffer] {
                write(*buffer);
                --group.unwritten;
                block_.scheduler.wake(storer.waiting);
            });
        });
    });
}

void Copies::store_tile(const Tensor& map, uint32_t source, const Place& place) {
    block_.scheduler.step(16);
    const int bytes = map.box_rows * ROW_BYTES;
    block_.shared.check(source, bytes, TILE_ALIGNMENT, "store_tile");
    begin_store(source, bytes);
    for (int row = 0; row < map.box_rows; ++row) {
        const Clip inside = clip(map, place, row);
        if (inside.count > 0)
            check_global_write(inside.first, inside.count * ELEMENT_BYTES, ELEMENT_BYTES, "store_tile");
    }
    const Tensor tensor = map;
    const auto read = [this, source, bytes] {
        Buffer buffer(bytes);
        for (int i = 0; i < bytes; i += 16) std::memcpy(&buffer[i], block_.shared.at(swizzle(source + i)), 16);
        return buffer;
    };
    const auto write = [tensor, place](const Buffer& buffer) {
        for (int row = 0; row < tensor.box_rows; ++row) {
            const Clip inside = clip(tensor, place, row);
            if (inside.count > 0)
                std::memcpy(inside.first, &buffer[row * ROW_BYTES + inside.skipped * ELEMENT_BYTES],
                            inside.count * ELEMENT_BYTES);
        }
    };
    queue_store(read, write);
    block_.scheduler.step(16);
}

void Copies::add_floats(float* destination, uint32_t source, int bytes) {
    block_.scheduler.step(16);
    block_.shared.check(source, bytes, RUN_ALIGNMENT, "add_floats");
    check_run(destination, bytes, "add_floats");
    check_global_read(destination, bytes, RUN_ALIGNMENT, "add_floats");
    begin_store(source, bytes);
    const auto read = [this, source, bytes] {
        return Buffer(block_.shared.at(source), block_.shared.at(source) + bytes);
    };
    const auto write = [destination](const Buffer& buffer) {
        for (size_t i = 0; i < buffer.size() / sizeof(float); ++i) {
            float term;
            std::memcpy(&term, &buffer[i * sizeof(float)], sizeof(float));
            destination[i] += term;
        }
    };
    queue_store(read, write);
    block_.scheduler.step(16);
}

void Copies::commit() {
    Storer& storer = running_storer();
    storer.groups.emplace_back();
    for (auto& start : storer.open) start(storer.groups.back());
    storer.open.clear();
    block_.scheduler.step(16);
}

void Copies::wait_read(int pending) {
    const int thread = block_.scheduler.running();
    Storer& storer = running_storer();
    const int wanted = static_cast<int>(storer.groups.size()) - pending;
    const auto unread = [&storer, wanted] {
        for (int i = storer.known_read; i < wanted; ++i)
            if (storer.groups[i].unread != 0) return true;
        return false;
    };
    while (unread()) block_.scheduler.park(storer.waiting, {"wait_stores_read", 0, pending});
    if (wanted > storer.known_read) storer.known_read = wanted;
    if (block_.checks && wanted > 0) block_.order.learn(thread, storer.component, wanted);
}

void Copies::wait_written(int pending) {
    Storer& storer = running_storer();
    const int wanted = static_cast<int>(storer.groups.size()) - pending;
    const auto unwritten = [&storer, wanted] {
        for (int i = 0; i < wanted; ++i)
            if (storer.groups[i].unwritten != 0) return true;
        return false;
    };
    while (unwritten()) block_.scheduler.park(storer.waiting, {"wait_stores", 0, pending});
    wait_read(pending);
}

void Copies::end_thread(int thread) {
    const Storer& storer = storers_[thread];
    if (!storer.open.empty() || storer.known_read < static_cast<int>(storer.groups.size()))
        report(hazard::UNFINISHED, "bulk stores may still read shared memory");
}

}  // namespace emulator
