// One parallel region a call, on the threads that torch's operations use: a pool of our own would fight theirs.
#pragma once
#include <cstdint>
#include <type_traits>

// Runs task(data, item) for every item, each drawn from a counter, on up to so many threads. What a task throws is
// thrown again when all have ended.
void run_parallel(int threads, int64_t items, void (*task)(void*, int64_t), void* data);

template <class Task>
void parallel(int threads, int64_t items, Task&& task) {
    using Function = std::remove_reference_t<Task>;
    run_parallel(threads, items, [](void* data, int64_t item) { (*static_cast<Function*>(data))(item); }, &task);
}
