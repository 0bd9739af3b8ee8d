// The copy engine: bulk loads that land, and bulk stores that read and write, at random later steps.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "emulator/clock.h"
#include "emulator/scheduler.h"
#include "emulator/tensor.h"

namespace emulator {

struct Block;

class Copies {
  public:
    Copies(Block& block, int threads) : block_(block), storers_(threads) {}

    void load_tile(uint32_t destination, const Tensor& map, uint32_t barrier, const Place& place);
    void load_bytes(uint32_t destination, const void* source, int bytes, uint32_t barrier);
    void store_tile(const Tensor& map, uint32_t source, const Place& place);
    void add_floats(float* destination, uint32_t source, int bytes);

    // Groups of the running thread's stores.
    void commit();
    void wait_read(int pending);
    void wait_written(int pending);

    // Reports when the thread leaves stores behind that may not have read shared memory yet.
    void end_thread(int thread);

  private:
    struct Group {
        int unread = 0, unwritten = 0;
    };

    struct Storer {
        int component = -1;
        std::deque<Group> groups;  // all that were ever committed
        std::vector<std::function<void(Group&)>> open;
        int known_read = 0;  // groups that the thread has waited for
        Queue waiting;
    };

    void land_later(uint32_t barrier, int bytes, std::function<void()> copy_bytes);
    void begin_load(uint32_t destination, int bytes, uint32_t barrier);
    void begin_store(uint32_t source, int bytes);
    // Queues a store whose bytes are read by read() into a buffer, and written by write(buffer).
    using Buffer = std::vector<unsigned char>;
    void queue_store(std::function<Buffer()> read, std::function<void(const Buffer&)> write);
    Storer& running_storer();

    Block& block_;
    std::vector<Storer> storers_;  // by thread
};

}  // namespace emulator
