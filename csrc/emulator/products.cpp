#include "emulator/products.h"

#include <algorithm>
#include <cstring>

#include "emulator/block.h"
#include "emulator/multiply.h"
#include "emulator/report.h"

namespace emulator {

namespace {

bool same(const ProductShape& x, const ProductShape& y) {
    return x.type == y.type && x.columns == y.columns && x.a_in_registers == y.a_in_registers &&
           x.a_mn_major == y.a_mn_major && x.b_mn_major == y.b_mn_major;
}

}  // namespace

Products::Products(Block& block, int threads) : block_(block), warpgroups_(threads / LANES) {
    for (size_t i = 0; i < warpgroups_.size(); ++i) {
        warpgroups_[i].number = static_cast<int>(i);
        warpgroups_[i].component = block.order.components.add(Actor::PRODUCTS, static_cast<uint32_t>(i));
    }
}

Products::Warpgroup& Products::running_group() {
    const size_t number = block_.scheduler.running() / LANES;
    if (number >= warpgroups_.size())
        report(hazard::DIVERGENT_PRODUCT, "the last warps of the block are no whole warpgroup");
    return warpgroups_[number];
}

Products::Step& Products::reach(Warpgroup& group, Kind kind, int argument) {
    const uint64_t place = group.lanes[block_.scheduler.running() % LANES].steps++ - group.closed;
    if (place == group.steps.size()) group.steps.push_back({kind, argument, 0, nullptr});
    Step& step = group.steps[place];
    if (step.kind != kind || step.argument != argument) {
        static const char* const NAMES[] = {"a product", "products_fence", "products_commit", "products_wait"};
        report(hazard::DIVERGENT_PRODUCT,
               format("%s (%d) where other lanes of the warpgroup are in %s (%d)", NAMES[static_cast<int>(kind)],
                      argument, NAMES[static_cast<int>(step.kind)], step.argument));
    }
    return step;
}

void Products::pass(Warpgroup& group, Step& step) {
    if (++step.lanes < LANES) return;
    if (step.kind == Kind::PRODUCT) {
        if (block_.checks) check_operands(*step.product);
        group.collected.push_back(std::move(step.product));
    } else if (step.kind == Kind::COMMIT) {
        group.groups.push_back(std::move(group.collected));
        group.collected.clear();
        block_.scheduler.post([this, &group] { execute_next(group); });
    }
    while (!group.steps.empty() && group.steps.front().lanes == LANES) {
        group.steps.pop_front();
        ++group.closed;
    }
}

void Products::issue(const ProductShape& shape, float* d, uint64_t a, const uint32_t* a_registers, uint64_t b,
                     bool accumulate) {
    const int thread = block_.scheduler.running(), index = thread % LANES;
    Warpgroup& group = running_group();
    Lane& lane = group.lanes[index];
    // Products of one shape that follow each other on the same accumulators need no fence between them.
    const auto follows = [&](const Issued& earlier) { return earlier.d == d && earlier.columns == shape.columns; };
    if (block_.checks && !lane.fenced && std::none_of(lane.unwaited.begin(), lane.unwaited.end(), follows))
        report(hazard::PRODUCTS_FENCE, "registers may have been touched since the last wait");
    lane.unwaited.push_back({d, shape.columns, lane.committed});
    lane.open = true;
    Step& step = reach(group, Kind::PRODUCT, 0);
    if (step.product == nullptr) step.product = begin(group, shape, d, a, b, accumulate);
    Product& product = *step.product;
    if (!same(product.shape, shape) || product.b != b || product.accumulate != accumulate ||
        (!shape.a_in_registers && product.a != a))
        report(hazard::DIVERGENT_PRODUCT, "lanes of the warpgroup issue it with other descriptors");
    if (product.captures) {
        if (block_.checks && accumulate) lane.registers.check(d, shape.columns / 2 * sizeof(float));
        product.d->capture(index, d);
    }
    if (!product.d->is(index, d, shape.columns))
        report(hazard::DIVERGENT_PRODUCT, "lanes of the warpgroup issue it on other accumulators");
    if (shape.a_in_registers) {
        if (block_.checks) lane.registers.check(a_registers, 4 * sizeof(uint32_t));
        product.fragments[index] = a_registers;
        std::memcpy(product.fragments_at_issue[index], a_registers, sizeof(product.fragments_at_issue[index]));
    }
    if (block_.checks) {
        VectorClock& clock = product.warp_clocks[index / 32];
        if (clock.empty()) {
            mark_operands(product, index / 32, epoch(group.component, lane.committed + 1));
            clock = block_.order.clock(thread);
        } else {
            clock.meet(block_.order.clock(thread));
        }
    }
    pass(group, step);
    block_.scheduler.step(4);
}

std::unique_ptr<Products::Product> Products::begin(Warpgroup& group, const ProductShape& shape, float* d, uint64_t a,
                                                   uint64_t b, bool accumulate) {
    auto product = std::make_unique<Product>();
    product->shape = shape;
    product->a = a;
    product->b = b;
    product->accumulate = accumulate;
    product->operands.emplace_back(b, shape.b_mn_major, shape.columns, block_.shared);
    if (!shape.a_in_registers) product->operands.emplace_back(a, shape.a_mn_major, ROWS, block_.shared);
    product->d = in_flight(group, block_.scheduler.running() % LANES, d, shape.columns);
    if (product->d == nullptr) {
        group.accumulators.push_back(std::make_unique<Accumulator>(shape.columns));
        product->d = group.accumulators.back().get();
        product->captures = true;
    }
    ++product->d->in_flight;
    return product;
}

Accumulator* Products::in_flight(Warpgroup& group, int lane, const float* d, int columns) {
    for (const auto& accumulator : group.accumulators)
        if (accumulator->is(lane, d, columns)) return accumulator.get();
    return nullptr;
}

// From the issue by a warp's first lane on, nobody may overwrite what the warp reads.
void Products::mark_operands(const Product& product, int warp, Epoch reader) {
    const VectorClock& clock = block_.order.clock(block_.scheduler.running());
    const bool first = std::all_of(product.warp_clocks, product.warp_clocks + 4,
                                   [](const VectorClock& other) { return other.empty(); });
    if (first)
        for (const Operand::Chunk& chunk : product.operands[0].chunks())
            block_.shadow.mark_read(chunk.address, CHUNK_BYTES, reader, clock);
    if (product.shape.a_in_registers) return;
    for (const Operand::Chunk& chunk : product.operands[1].chunks())
        if (chunk.row / 16 == warp) block_.shadow.mark_read(chunk.address, CHUNK_BYTES, reader, clock);
}

// Once the last lane has issued the product, all must have known the operands to be there.
void Products::check_operands(const Product& product) const {
    VectorClock all = product.warp_clocks[0];
    for (int warp = 1; warp < 4; ++warp) all.meet(product.warp_clocks[warp]);
    for (const Operand::Chunk& chunk : product.operands[0].chunks())
        block_.shadow.check_read(chunk.address, CHUNK_BYTES, all, true);
    if (product.shape.a_in_registers) return;
    for (const Operand::Chunk& chunk : product.operands[1].chunks())
        block_.shadow.check_read(chunk.address, CHUNK_BYTES, product.warp_clocks[chunk.row / 16], true);
}

void Products::fence() {
    Warpgroup& group = running_group();
    Lane& lane = group.lanes[block_.scheduler.running() % LANES];
    lane.fenced = true;
    lane.registers.fence([&lane](const void* registers) {
        return std::any_of(lane.unwaited.begin(), lane.unwaited.end(),
                           [registers](const Issued& issued) { return issued.d == registers; });
    });
    pass(group, reach(group, Kind::FENCE, 0));
    block_.scheduler.step(4);
}

void Products::commit() {
    Warpgroup& group = running_group();
    Lane& lane = group.lanes[block_.scheduler.running() % LANES];
    ++lane.committed;
    lane.open = false;
    pass(group, reach(group, Kind::COMMIT, 0));
    block_.scheduler.step(4);
}

void Products::wait(int pending) {
    const int thread = block_.scheduler.running();
    Warpgroup& group = running_group();
    Lane& lane = group.lanes[thread % LANES];
    pass(group, reach(group, Kind::WAIT, pending));
    lane.fenced = false;
    const int wanted = lane.committed - pending;
    while (group.executed < wanted)
        block_.scheduler.park(group.waiting, {"products_wait", static_cast<uint32_t>(thread / LANES), pending});
    lane.waited = std::max(lane.waited, wanted);
    lane.unwaited.erase(std::remove_if(lane.unwaited.begin(), lane.unwaited.end(),
                                       [wanted](const Issued& issued) { return issued.group < wanted; }),
                        lane.unwaited.end());
    if (block_.checks && wanted > 0) block_.order.learn(thread, group.component, wanted);
    block_.scheduler.step(16);
}

void Products::execute_next(Warpgroup& group) {
    for (const auto& product : group.groups.front()) execute(*product);
    for (const auto& product : group.groups.front())
        if (--product->d->in_flight == 0) product->d->land(block_.checks);
    auto& accumulators = group.accumulators;
    accumulators.erase(std::remove_if(accumulators.begin(), accumulators.end(),
                                      [](const auto& accumulator) { return accumulator->in_flight == 0; }),
                       accumulators.end());
    group.groups.pop_front();
    ++group.executed;
    block_.scheduler.wake(group.waiting);
}

void Products::execute(Product& product) {
    const int columns = product.shape.columns;
    alignas(64) float a[ROWS * DEPTH], b[DEPTH * 256];
    product.operands[0].gather(block_.shared, product.shape.type, b, 1, columns);
    if (product.shape.a_in_registers) {
        for (int lane = 0; lane < LANES; ++lane) {
            const uint32_t* fragments = product.fragments_at_issue[lane];
            if (block_.checks && std::memcmp(product.fragments[lane], fragments, 4 * sizeof(uint32_t)) != 0)
                report(hazard::OPERAND_MODIFIED, format("of lane %d of the warpgroup", lane));
            for (int i = 0; i < 4; ++i) {
                const int row = lane / 32 * 16 + lane % 32 / 4 + i % 2 * 8, depth = i / 2 * 8 + lane % 4 * 2;
                for (int half = 0; half < 2; ++half) {
                    const auto bits = static_cast<uint16_t>(fragments[i] >> 16 * half);
                    a[row * DEPTH + depth + half] =
                        product.shape.type == Type::BF16 ? bf16_to_float(bits) : fp16_to_float(bits);
                }
            }
        }
    } else {
        product.operands[1].gather(block_.shared, product.shape.type, a, DEPTH, 1);
    }
    std::vector<float>& matrix = product.d->matrix();
    if (!product.accumulate) std::fill(matrix.begin(), matrix.end(), 0.0f);
    multiply(matrix.data(), a, b, columns);
}

void Products::end_thread(int thread) {
    if (static_cast<size_t>(thread / LANES) >= warpgroups_.size()) return;
    const Lane& lane = warpgroups_[thread / LANES].lanes[thread % LANES];
    if (lane.open || lane.waited < lane.committed) report(hazard::UNFINISHED, "products are under way");
}

std::string Products::describe_wait(int warpgroup, int pending) const {
    const Warpgroup& group = warpgroups_[warpgroup];
    const size_t committed = group.executed + group.groups.size();
    return format("<%d> (%d groups executed, %zu committed by all lanes, %zu steps not reached by all)", pending,
                  group.executed, committed, group.steps.size());
}

}  // namespace emulator
