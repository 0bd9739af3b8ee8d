// The matrix unit: products that warpgroups issue, commit in groups and wait for, done at random later steps.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "emulator/accumulator.h"
#include "emulator/clock.h"
#include "emulator/fenced_registers.h"
#include "emulator/operand.h"
#include "emulator/scheduler.h"

namespace emulator {

struct Block;

// What an instruction says apart from its operands.
struct ProductShape {
    Type type;
    int columns;
    bool a_in_registers, a_mn_major, b_mn_major;
};

class Products {
  public:
    Products(Block& block, int threads);

    void issue(const ProductShape& shape, float* d, uint64_t a, const uint32_t* a_registers, uint64_t b,
               bool accumulate);
    void fence();
    void commit();
    void wait(int pending);

    // Reports when the thread leaves products behind that it has not waited for.
    void end_thread(int thread);

    std::string describe_wait(int warpgroup, int pending) const;

  private:
    static constexpr int LANES = Accumulator::LANES, ROWS = Accumulator::ROWS;

    struct Product {
        ProductShape shape;
        uint64_t a, b;
        bool accumulate;
        Accumulator* d;
        bool captures = false;          // the lanes' old registers are D; otherwise an earlier product's result is
        std::vector<Operand> operands;  // in shared memory: B, then A
        const uint32_t* fragments[LANES] = {};
        uint32_t fragments_at_issue[LANES][4];
        VectorClock warp_clocks[4];  // what all lanes of the warp knew; empty before its first lane comes
    };

    enum class Kind { PRODUCT, FENCE, COMMIT, WAIT };

    // One step of a warpgroup's program; lanes reach it at different times.
    struct Step {
        Kind kind;
        int argument;
        int lanes = 0;
        std::unique_ptr<Product> product;
    };

    struct Issued {
        const float* d;
        int columns, group;
    };

    struct Lane {
        uint64_t steps = 0;
        int committed = 0, waited = 0;  // groups
        std::vector<Issued> unwaited;
        FencedRegisters registers;
        bool open = false;    // products since the last commit
        bool fenced = false;  // since the last wait
    };

    struct Warpgroup {
        int number;
        int component;
        std::deque<Step> steps;
        uint64_t closed = 0;                                       // steps that all lanes have passed
        std::vector<std::unique_ptr<Product>> collected;           // by all lanes, for the group to come
        std::deque<std::vector<std::unique_ptr<Product>>> groups;  // committed, not executed
        int executed = 0;                                          // groups
        std::vector<std::unique_ptr<Accumulator>> accumulators;    // in flight
        Queue waiting;
        Lane lanes[LANES];
    };

    Warpgroup& running_group();
    Step& reach(Warpgroup& group, Kind kind, int argument);
    void pass(Warpgroup& group, Step& step);

    std::unique_ptr<Product> begin(Warpgroup& group, const ProductShape& shape, float* d, uint64_t a, uint64_t b,
                                   bool accumulate);
    Accumulator* in_flight(Warpgroup& group, int lane, const float* d, int columns);
    // A warp reads its own rows of A, and all of B.
    void mark_operands(const Product& product, int warp, Epoch reader);
    void check_operands(const Product& product) const;
    void execute_next(Warpgroup& group);
    void execute(Product& product);

    Block& block_;
    std::vector<Warpgroup> warpgroups_;
};

}  // namespace emulator
