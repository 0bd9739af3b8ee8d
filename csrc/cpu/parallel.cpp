#include "parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

namespace {

struct Region {
    int64_t items;
    void (*task)(void*, int64_t);
    void* data;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr failure;

    void work() {
        for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
            try {
                task(data, item);
            } catch (...) {
                next = items;
                if (!failed.exchange(true)) failure = std::current_exception();
            }
        }
    }
    static void work_on(void* region) { static_cast<Region*>(region)->work(); }
};

// The entry of the OpenMP runtime that torch has loaded, GNU's or one that stands in for it; null if it has none.
using Fork = void (*)(void (*)(void*), void*, unsigned, unsigned);
Fork torchs_threads() {
    static const Fork found = reinterpret_cast<Fork>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

}  // namespace

void run_parallel(int threads, int64_t items, void (*task)(void*, int64_t), void* data) {
    Region region{items, task, data};
    threads = static_cast<int>(std::min<int64_t>(threads, items));
    if (threads <= 1) {
        region.work();
    } else if (const Fork fork = torchs_threads()) {
        fork(&Region::work_on, &region, threads, 0);
    } else {
        std::vector<std::thread> others;
        for (int i = 1; i < threads; ++i) others.emplace_back(&Region::work, &region);
        region.work();
        for (auto& thread : others) thread.join();
    }
    if (region.failure) std::rethrow_exception(region.failure);
}
