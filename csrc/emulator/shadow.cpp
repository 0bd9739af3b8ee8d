#include "emulator/shadow.h"

#include <algorithm>

#include "emulator/report.h"

namespace emulator {

bool fenced_between(const std::vector<uint32_t>& fences, Epoch moment, const VectorClock& clock) {
    const auto fence = std::lower_bound(fences.begin(), fences.end(), count_of(moment));
    return fence != fences.end() && *fence <= clock.at(component_of(moment));
}

void Shadow::check_read(uint32_t address, int bytes, const VectorClock& clock, bool asynchronous) const {
    Epoch good = 0;  // neighbours mostly have the same writer
    for (int i = 0; i < bytes; i += GRANULE) {
        const Epoch write = at(address + i)->write;
        if (write == good && write != 0) continue;
        if (write == 0 || !clock.covers(write)) report_read(address + i, write);
        if (asynchronous) check_fence(address + i, write, clock);
        good = write;
    }
}

void Shadow::check_fence(uint32_t address, Epoch write, const VectorClock& clock) const {
    if (components_.actor(write) == Actor::THREAD && !fenced_between(fences_[components_.id(write)], write, clock))
        report(hazard::PROXY_FENCE,
               format("shared address 0x%x, written by %s", address, components_.describe(write).c_str()));
}

void Shadow::mark_read(uint32_t address, int bytes, Epoch reader, const VectorClock& clock) {
    for (int i = 0; i < bytes; i += GRANULE) {
        Granule& granule = *at(address + i);
        bool placed = false;
        for (Epoch& old : granule.reads) {
            // What the reader knows to be over need not be remembered beside it.
            if (old == 0 || component_of(old) == component_of(reader) || clock.covers(old)) {
                old = placed ? 0 : reader;
                placed = true;
            }
        }
        if (!placed) add_overflow(granule, reader, clock);
    }
}

void Shadow::add_overflow(Granule& granule, Epoch reader, const VectorClock& clock) {
    if (granule.more == 0) {
        if (free_.empty()) {
            free_.push_back(static_cast<uint32_t>(overflow_.size()));
            overflow_.emplace_back();
        }
        granule.more = free_.back();
        free_.pop_back();
    }
    auto& readers = overflow_[granule.more];
    for (Epoch& old : readers) {
        if (component_of(old) == component_of(reader) || clock.covers(old)) {
            old = reader;
            return;
        }
    }
    readers.push_back(reader);
}

void Shadow::write(uint32_t address, int bytes, const VectorClock& clock, Epoch writer, bool asynchronous) {
    for (int i = 0; i < bytes; i += GRANULE) {
        Granule& granule = *at(address + i);
        for (Epoch read : granule.reads)
            if (read != 0 && !clock.covers(read)) report_write(address + i, read, true);
        if (granule.more != 0) {
            for (Epoch read : overflow_[granule.more])
                if (!clock.covers(read)) report_write(address + i, read, true);
            overflow_[granule.more].clear();
            free_.push_back(granule.more);
        }
        if (granule.write != 0 && !clock.covers(granule.write)) report_write(address + i, granule.write, false);
        if (asynchronous && granule.write != 0) check_fence(address + i, granule.write, clock);
        granule = Granule();
        granule.write = writer;
    }
}

void Shadow::claim_barrier(uint32_t address, int bytes) {
    for (int i = 0; i < bytes; i += GRANULE) {
        *at(address + i) = Granule();
        at(address + i)->write = BARRIER;
    }
}

void Shadow::report_read(uint32_t address, Epoch write) const {
    if (write == 0) report(hazard::UNINITIALISED, format("shared address 0x%x", address));
    if (write == BARRIER) report(hazard::BARRIER_BYTES, format("shared address 0x%x", address));
    const bool copy = components_.actor(write) == Actor::COPIES;
    report(copy ? hazard::EARLY_READ : hazard::RACE,
           format("shared address 0x%x, read while not ordered after the write by %s", address,
                  components_.describe(write).c_str()));
}

void Shadow::report_write(uint32_t address, Epoch other, bool other_reads) const {
    if (other == BARRIER) report(hazard::BARRIER_BYTES, format("shared address 0x%x", address));
    const Actor actor = components_.actor(other);
    const bool operand = other_reads && (actor == Actor::PRODUCTS || actor == Actor::STORES);
    report(operand ? hazard::OVERWRITE : hazard::RACE,
           format("shared address 0x%x, written while not ordered after the %s by %s", address,
                  other_reads ? "read" : "write", components_.describe(other).c_str()));
}

}  // namespace emulator
