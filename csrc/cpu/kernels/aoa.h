// Attention-over-Attention (Cui et al. 2017, arXiv 1607.04423): of the scores M = document question^T, the softmax of
// each column over the document and of each row over the question, with M as tiles of document words by the whole question
// (lanes). Words that a mask hides are left out. Backward: with A and B the softmax of M's columns and rows,
// g = A^T grad and h = B g, dM = A beta (grad - g) + B (g - h) / n, n the number of document words.
#pragma once
#include "../online_softmax.h"
#include "../parallel.h"

namespace ISA {

using Memory = std::unique_ptr<float, void (*)(void*)>;

inline Memory room(int64_t count) {
    auto* memory = static_cast<float*>(std::aligned_alloc(ALIGNMENT, Scratch::rounded(count * sizeof(float) + 1)));
    if (!memory) throw std::bad_alloc();
    return {memory, std::free};
}
inline Memory floats(int64_t count, float filled = 0) {
    Memory memory = room(count);
    for (int64_t i = 0; i < count; ++i) memory.get()[i] = filled;
    return memory;
}

// The words of one document or question that are no padding.
struct WordList {
    int64_t count = 0;
    std::unique_ptr<int64_t[]> place;

    WordList(const bool* mask, int64_t length) : place(new int64_t[length]) {
        for (int64_t i = 0; i < length; ++i)
            if (!mask || mask[i]) place[count++] = i;
    }
};

// One document and its question.
class Pair {
  public:
    WordList words, asked;
    int padded, width;  // features, and words of the question, to a multiple of LANES

    Pair(const AoaCall& call, int64_t b)
        : words(call.document_mask ? call.document_mask + b * call.len_d : nullptr, call.len_d),
          asked(call.question_mask ? call.question_mask + b * call.len_q : nullptr, call.len_q),
          padded(round_up(call.features, LANES)),
          width(round_up(asked.count, LANES)),
          call(call),
          b(b),
          question(floats(width * padded)),
          turned(room(width * padded)),
          copy(floats(direct() ? 0 : TILE_ROWS * padded)),
          space(room((call.kept || !stores() ? 1 : tiles()) * TILE_ROWS * width)) {
        for (int64_t j = 0; j < asked.count; ++j)
            widen(question.get() + j * padded, call.question.at(b, 0, asked.place[j]), call.question.strides[3],
                  call.features, call.question.number);
        transpose(turned.get(), width, question.get(), padded, width, padded);
    }
    bool empty() const { return words.count == 0 || asked.count == 0; }
    int64_t tiles() const { return (words.count + TILE_ROWS - 1) / TILE_ROWS; }
    int count(int64_t tile) const {
        const int64_t left = words.count - tile * TILE_ROWS;
        return static_cast<int>(left < TILE_ROWS ? left : TILE_ROWS);
    }
    int64_t word(int64_t tile, int i) const { return words.place[tile * TILE_ROWS + i]; }
    Rows questions() const { return {question.get(), padded}; }

    // A tile's words, as rows of whole vectors.
    Rows document(int64_t tile) const {
        const Tensor& from = call.document;
        if (direct()) return {reinterpret_cast<float*>(from.at(b, 0, tile * TILE_ROWS)), from.strides[2]};
        for (int i = 0; i < count(tile); ++i)
            widen(copy.get() + i * padded, from.at(b, 0, word(tile, i)), from.strides[3], call.features, from.number);
        return {copy.get(), padded};
    }
    // The scores (document word, lane) of a tile; -inf in lanes without a word. again: after the first time, when they
    // may have been kept.
    float* scores(int64_t tile, bool again) const {
        float* found = space.get() + (stores() && !call.kept ? tile : 0) * TILE_ROWS * width;
        float* kept = call.kept ? call.kept + (b * call.len_d + tile * TILE_ROWS) * call.len_q : nullptr;
        if (again && kept) {
            for (int i = 0; i < count(tile); ++i)
                std::memcpy(found + i * width, kept + i * call.len_q, asked.count * sizeof(float));
        } else if (!again || !stores()) {
            const Rows rows = document(tile);
            product({rows.data, rows.row, 1}, {turned.get(), width}, {found, width}, count(tile), width, call.features,
                    Bounded{});
        } else {
            return found;
        }
        for (int i = 0; i < count(tile); ++i) {
            if (kept && !again) std::memcpy(kept + i * call.len_q, found + i * width, asked.count * sizeof(float));
            for (int j = static_cast<int>(asked.count); j < width; ++j) found[i * width + j] = -INFINITY;
        }
        return found;
    }

  private:
    // An infinite score counts as the largest number.
    struct Bounded {
        INLINE Floats operator()(Floats sum, const float*, int) const { return min(splat(LARGEST), sum); }
    };
    const AoaCall& call;
    int64_t b;
    Memory question, turned, copy, space;

    bool direct() const {
        const Tensor& from = call.document;
        return from.number == Number::float32 && from.strides[3] == 1 && padded == call.features && !call.document_mask;
    }
    // Scores take no more memory than the document: they are not computed twice.
    bool stores() const { return call.len_q * 4 <= call.features * bytes(call.document.number); }
};

// The exponentials of a row of scores, relative to the highest; returns their sum.
INLINE float row_exponentials(const float* scores, int width, float* found, float& top) {
    Floats highest = splat(-LARGEST), sum = {};
    for (int j = 0; j < width; j += LANES) highest = max(load(scores + j), highest);
    top = highest_of(highest);
    for (int j = 0; j < width; j += LANES) {
        const Floats one = exp(load(scores + j) - top);
        store(found + j, one);
        sum += one;
    }
    const float total = sum_of(sum);
    return total == 0 ? 1 : total;
}

// Sums over the document, one for each word of the question: of a tile in float32, of all in float64.
struct ColumnSums {
    Memory tile;
    std::unique_ptr<double[]> total;
    int width;

    explicit ColumnSums(int width) : tile(floats(width)), total(new double[width]()), width(width) {}
    INLINE void add(int j, Floats more) { store(tile.get() + j, load(tile.get() + j) + more); }
    void end_tile() {
        for (int j = 0; j < width; ++j) total[j] += tile.get()[j], tile.get()[j] = 0;
    }
};

inline void aoa_forward_pair(const AoaCall& call, const AoaForward& results, int64_t b) {
    const int64_t size = bytes(results.attention.number);
    float* row_lse = results.row_lse + b * call.len_d;
    float *column_lse = results.column_lse + b * call.len_q, *beta = results.beta + b * call.len_q;
    std::memset(results.attention.at(b, 0, 0), 0, call.len_d * size);
    for (int64_t i = 0; i < call.len_d; ++i) row_lse[i] = 0;
    for (int64_t j = 0; j < call.len_q; ++j) column_lse[j] = beta[j] = 0;
    const Pair pair(call, b);
    if (pair.empty()) return;
    const int width = pair.width;
    const Memory tops = floats(width, -LARGEST), weights = floats(width), row = floats(width);
    float* top = tops.get();
    ColumnSums masses(width), shares(width);
    for (int64_t tile = 0; tile < pair.tiles(); ++tile) {
        const int count = pair.count(tile);
        const float* scores = pair.scores(tile, false);
        for (int j = 0; j < width; j += LANES) {
            Floats highest = load(top + j), several[4] = {highest, highest, highest, highest}, mass[4] = {};
            int i = 0;
            for (; i + 4 <= count; i += 4)
                for (int k = 0; k < 4; ++k) several[k] = max(load(scores + (i + k) * width + j), several[k]);
            for (; i < count; ++i) highest = max(load(scores + i * width + j), highest);
            for (int k = 0; k < 4; ++k) highest = max(several[k], highest);
            const Floats shrink = exp(load(top + j) - highest);
            for (int lane = 0; lane < LANES; ++lane) masses.total[j + lane] *= shrink[lane];
            store(top + j, highest);
            for (i = 0; i + 4 <= count; i += 4)
                for (int k = 0; k < 4; ++k) mass[k] += exp(load(scores + (i + k) * width + j) - highest);
            for (; i < count; ++i) mass[0] += exp(load(scores + i * width + j) - highest);
            masses.add(j, mass[0] + mass[1] + (mass[2] + mass[3]));
        }
        for (int i = 0; i < count; ++i) {
            float above;
            const float total = row_exponentials(scores + i * width, width, row.get(), above);
            row_lse[pair.word(tile, i)] = above + std::log(total);
            for (int j = 0; j < width; j += LANES) shares.add(j, load(row.get() + j) / total);
        }
        masses.end_tile(), shares.end_tile();
    }
    for (int64_t j = 0; j < pair.asked.count; ++j) {
        const double share = shares.total[j] / pair.words.count, whole = masses.total[j] == 0 ? 1 : masses.total[j];
        column_lse[pair.asked.place[j]] = static_cast<float>(top[j] + std::log(whole));
        beta[pair.asked.place[j]] = static_cast<float>(share);
        weights.get()[j] = static_cast<float>(share / whole);
    }
    for (int64_t tile = 0; tile < pair.tiles(); ++tile) {
        const float* scores = pair.scores(tile, true);
        for (int i = 0; i < pair.count(tile); ++i) {
            Floats found = {};
            for (int j = 0; j < width; j += LANES)
                found += exp(load(scores + i * width + j) - load(top + j)) * load(weights.get() + j);
            const float attention = sum_of(found);
            narrow(results.attention.at(b, 0, 0) + pair.word(tile, i) * size, &attention, 1, 1,
                   results.attention.number);
        }
    }
}

inline void aoa_backward_pair(const AoaCall& call, const AoaBackward& given, int64_t b) {
    const Pair pair(call, b);
    const int padded = pair.padded, width = pair.width;
    const auto put = [&](const Tensor& to, int64_t word, const float* from) {
        narrow(to.at(b, 0, word), from, to.strides[3], call.features, to.number);
    };
    const Memory zero = floats(padded);
    for (int64_t i = 0; i < call.len_d && (call.document_mask || pair.empty()); ++i)
        put(given.grad_document, i, zero.get());
    for (int64_t j = 0; j < call.len_q && (call.question_mask || pair.empty()); ++j)
        put(given.grad_question, j, zero.get());
    if (pair.empty()) return;

    const auto grad_of = [&](int64_t tile, int i) {
        float found;
        const int64_t place = pair.word(tile, i) * given.grad.strides[3] * bytes(given.grad.number);
        widen(&found, given.grad.at(b, 0, 0) + place, 1, 1, given.grad.number);
        return found;
    };
    const Memory columns = floats(width), weights = floats(width), means = floats(width), row = floats(width);
    for (int64_t j = 0; j < pair.asked.count; ++j)
        columns.get()[j] = given.column_lse[b * call.len_q + pair.asked.place[j]];
    ColumnSums masses(width), gradients(width);
    for (int64_t tile = 0; tile < pair.tiles(); ++tile) {
        const float* scores = pair.scores(tile, call.kept != nullptr);
        for (int i = 0; i < pair.count(tile); ++i) {
            const float grad = grad_of(tile, i);
            for (int j = 0; j < width; j += LANES) {
                const Floats one = exp(load(scores + i * width + j) - load(columns.get() + j));
                masses.add(j, one), gradients.add(j, one * grad);
            }
        }
        masses.end_tile(), gradients.end_tile();
    }
    // the lse was rounded: its softmax adds up to not quite 1
    for (int64_t j = 0; j < pair.asked.count; ++j) {
        const double whole = masses.total[j] == 0 ? 1 : masses.total[j];
        means.get()[j] = static_cast<float>(gradients.total[j] / whole);
        weights.get()[j] = static_cast<float>(given.beta[b * call.len_q + pair.asked.place[j]] / whole);
    }
    const Memory sums = floats(pair.asked.count * padded), found = room(TILE_ROWS * padded);
    const Memory changes = room(TILE_ROWS * width);  // dM
    const float share = 1.0f / static_cast<float>(pair.words.count);
    for (int64_t tile = 0; tile < pair.tiles(); ++tile) {
        const int count = pair.count(tile);
        const float* scores = pair.scores(tile, true);
        for (int i = 0; i < count; ++i) {
            float above;
            const float inverse = 1 / row_exponentials(scores + i * width, width, row.get(), above);
            const float grad = grad_of(tile, i);
            Floats expected = {};
            for (int j = 0; j < width; j += LANES) expected += load(row.get() + j) * load(means.get() + j);
            const float mean = sum_of(expected) * inverse;  // h
            for (int j = 0; j < width; j += LANES) {
                const Floats by_column = exp(load(scores + i * width + j) - load(columns.get() + j));
                const Floats of_column = by_column * load(weights.get() + j) * (grad - load(means.get() + j));
                const Floats of_row = load(row.get() + j) * (inverse * share) * (load(means.get() + j) - mean);
                store(changes.get() + i * width + j, of_column + of_row);
            }
        }
        product({changes.get(), width, 1}, pair.questions(), {found.get(), padded}, count, padded, pair.asked.count,
                Scaled{1});
        for (int i = 0; i < count; ++i) put(given.grad_document, pair.word(tile, i), found.get() + i * padded);
        product({changes.get(), 1, width}, pair.document(tile), {sums.get(), padded}, pair.asked.count, padded, count,
                Added{});
    }
    for (int64_t j = 0; j < pair.asked.count; ++j)
        put(given.grad_question, pair.asked.place[j], sums.get() + j * padded);
}

inline void aoa_forward(const AoaCall& call, const AoaForward& results) {
    parallel(call.threads, call.batch, [&](int64_t b) { aoa_forward_pair(call, results, b); });
}
inline void aoa_backward(const AoaCall& call, const AoaBackward& given) {
    parallel(call.threads, call.batch, [&](int64_t b) { aoa_backward_pair(call, given, b); });
}

}  // namespace ISA
