// Vector clocks: what a thread knows to have happened before it.
//
// Every thread is a component; so are the copies of each barrier, the products of each warpgroup and the
// bulk stores of each thread, because they go on after the thread that started them.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace emulator {

// A moment of one component, in one word; 0 is no moment at all.
using Epoch = uint32_t;

constexpr int COUNT_BITS = 21;
constexpr uint32_t MAX_COUNT = (1u << COUNT_BITS) - 1;
constexpr int MAX_COMPONENTS = 1 << (32 - COUNT_BITS);

inline Epoch epoch(int component, uint32_t count) { return static_cast<uint32_t>(component) << COUNT_BITS | count; }
inline int component_of(Epoch moment) { return static_cast<int>(moment >> COUNT_BITS); }
inline uint32_t count_of(Epoch moment) { return moment & MAX_COUNT; }

class VectorClock {
  public:
    uint32_t at(int component) const {
        const size_t run = component / RUN;
        return run < runs_.size() ? runs_[run][component % RUN] : 0;
    }

    bool covers(Epoch moment) const { return count_of(moment) <= at(component_of(moment)); }

    bool empty() const { return runs_.empty(); }
    void clear() { runs_.clear(); }

    void raise(int component, uint32_t count) {
        const size_t run = component / RUN;
        if (run >= runs_.size()) runs_.resize(run + 1);
        runs_[run][component % RUN] = std::max(at(component), count);
    }

    // Knows from now on what either knew.
    void join(const VectorClock& other) {
        if (runs_.size() < other.runs_.size()) runs_.resize(other.runs_.size());
        for (size_t i = 0; i < other.runs_.size(); ++i)
            runs_[i] = runs_[i] > other.runs_[i] ? runs_[i] : other.runs_[i];
    }

    // Knows from now on only what both knew.
    void meet(const VectorClock& other) {
        if (runs_.size() > other.runs_.size()) runs_.resize(other.runs_.size());
        for (size_t i = 0; i < runs_.size(); ++i) runs_[i] = runs_[i] < other.runs_[i] ? runs_[i] : other.runs_[i];
    }

  private:
    static constexpr int RUN = 8;
    typedef uint32_t Counts __attribute__((vector_size(RUN * sizeof(uint32_t))));

    std::vector<Counts> runs_;
};

}  // namespace emulator
