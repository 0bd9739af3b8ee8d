// Attention-over-Attention (Cui et al. 2017, arXiv 1607.04423): of the scores M = document question^T, the softmax of
// each column over the document and of each row over the question, with M as tiles of document words (lanes) by the whole
// question. Words that a mask hides are left out. Backward: with A and B the softmax of M's columns and rows,
// g = A^T grad and h = B g, dM = A beta (grad - g) + B (g - h) / n, n the number of document words.
#pragma once
#include "../online_softmax.h"
#include "../parallel.h"

namespace ISA {

template <int Width>
INLINE Floats swapped(Floats a) {  // neighbouring runs of so many lanes
    Floats found;
    for (int i = 0; i < LANES; ++i) found[i] = a[i ^ Width];
    return found;
}
template <int Width = LANES / 2>
INLINE float sum_of(Floats a) {
    if constexpr (Width == 0)
        return a[0];
    else
        return sum_of<Width / 2>(a + swapped<Width>(a));
}
template <int Width = LANES / 2>
INLINE float highest_of(Floats a) {
    if constexpr (Width == 0)
        return a[0];
    else
        return highest_of<Width / 2>(max(swapped<Width>(a), a));
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
    int padded;  // features, to a multiple of LANES

    Pair(const AoaCall& call, int64_t b)
        : words(call.document_mask ? call.document_mask + b * call.len_d : nullptr, call.len_d),
          asked(call.question_mask ? call.question_mask + b * call.len_q : nullptr, call.len_q),
          padded(round_up(call.features, LANES)),
          call(call),
          b(b),
          question(floats(asked.count * padded)),
          rows(floats(TILE_ROWS * padded)),
          lanes(floats(TILE_ROWS * padded)),
          space(floats(call.kept ? 0 : (stores() ? tiles() : 1) * TILE_ROWS * asked.count)) {
        for (int64_t j = 0; j < asked.count; ++j) fetch(question.get() + j * padded, call.question, asked.place[j]);
    }
    bool empty() const { return words.count == 0 || asked.count == 0; }
    int64_t tiles() const { return (words.count + TILE_ROWS - 1) / TILE_ROWS; }
    int width(int64_t tile) const {
        const int64_t left = words.count - tile * TILE_ROWS;
        return round_up(left < TILE_ROWS ? left : TILE_ROWS, LANES);
    }
    int count(int64_t tile) const {
        const int64_t left = words.count - tile * TILE_ROWS;
        return static_cast<int>(left < TILE_ROWS ? left : TILE_ROWS);
    }
    Strided questions() const { return {question.get(), padded, 1}; }
    const float* document_rows() const { return rows.get(); }

    // A tile's words, as rows; lanes without a word are 0.
    void fetch_document(int64_t tile) {
        for (int i = 0; i < width(tile); ++i)
            if (i < count(tile))
                fetch(rows.get() + i * padded, call.document, words.place[tile * TILE_ROWS + i]);
            else
                std::memset(rows.get() + i * padded, 0, padded * sizeof(float));
    }
    // The scores (question word, lane) of a tile; -inf in lanes without a word. They are where they were left the last
    // time, if there is room for all of them.
    float* scores(int64_t tile, bool again) {
        const int wide = width(tile);
        float* found = place(tile);
        if (again && stores()) return found;
        fetch_document(tile);
        transpose(lanes.get(), wide, rows.get(), padded, wide, padded);
        product(questions(), {lanes.get(), wide}, {found, wide}, asked.count, wide, call.features, Scaled{1});
        for (int64_t at = 0; at < asked.count * wide; at += LANES)
            store(found + at, min(splat(LARGEST), load(found + at)));
        for (int64_t j = 0; j < asked.count; ++j)
            for (int i = count(tile); i < wide; ++i) found[j * wide + i] = -INFINITY;
        return found;
    }
    // Where a document word's entry of (batch, len_d) is.
    int64_t at(int64_t tile, int lane) const { return b * call.len_d + words.place[tile * TILE_ROWS + lane]; }
    int64_t asked_at(int64_t j) const { return b * call.len_q + asked.place[j]; }
    std::unique_ptr<float, void (*)(void*)> floats(int64_t count) const {
        auto* memory = static_cast<float*>(std::aligned_alloc(ALIGNMENT, Scratch::rounded(count * sizeof(float) + 1)));
        if (!memory) throw std::bad_alloc();
        return {memory, std::free};
    }
    // Fills rows of features of a result, for words of document or question.
    void put(const Tensor& to, int64_t word, const float* from) const {
        narrow(to.at(b, 0, word), from, to.strides[3], call.features, to.number);
    }

  private:
    const AoaCall& call;
    int64_t b;
    std::unique_ptr<float, void (*)(void*)> question, rows, lanes, space;

    // Scores take no more memory than the document: they are not computed twice.
    bool stores() const { return call.len_q * 4 <= call.features * bytes(call.document.number); }
    float* place(int64_t tile) const {
        if (call.kept)
            return call.kept + b * round_up(call.len_d, AoaCall::KEPT_WORDS) * call.len_q +
                   tile * TILE_ROWS * asked.count;
        return space.get() + (stores() ? tile : 0) * TILE_ROWS * asked.count;
    }
    void fetch(float* to, const Tensor& from, int64_t word) const {
        widen(to, from.at(b, 0, word), from.strides[3], call.features, from.number);
        std::memset(to + call.features, 0, (padded - call.features) * sizeof(float));
    }
};

// The highest score of each lane and the sum of exponentials relative to it.
inline void row_softmax(const float* scores, int64_t count, int width, float* top, float* total) {
    for (int i = 0; i < width; i += LANES) {
        Floats highest = splat(-LARGEST), sum = {};
        for (int64_t j = 0; j < count; ++j) highest = max(load(scores + j * width + i), highest);
        for (int64_t j = 0; j < count; ++j) sum += exp(load(scores + j * width + i) - highest);
        store(top + i, highest), store(total + i, max(splat(1e-38f), sum));
    }
}

inline void aoa_forward_pair(const AoaCall& call, const AoaForward& results, int64_t b) {
    std::memset(results.attention.at(b, 0, 0), 0, call.len_d * bytes(results.attention.number));
    for (int64_t i = 0; i < call.len_d; ++i) results.row_lse[b * call.len_d + i] = 0;
    for (int64_t j = 0; j < call.len_q; ++j)
        results.column_lse[b * call.len_q + j] = results.beta[b * call.len_q + j] = 0;
    Pair pair(call, b);
    if (pair.empty()) return;
    const int64_t asked = pair.asked.count;
    const auto columns = pair.floats(asked), weights = pair.floats(asked);  // highest scores; beta over the sum
    const std::unique_ptr<double[]> total(new double[asked]()), beta(new double[asked]());
    for (int64_t j = 0; j < asked; ++j) columns.get()[j] = -LARGEST;
    alignas(ALIGNMENT) float top[TILE_ROWS], sum[TILE_ROWS];
    for (int64_t tile = 0; tile < pair.tiles(); ++tile) {
        const int width = pair.width(tile);
        const float* scores = pair.scores(tile, false);
        row_softmax(scores, asked, width, top, sum);
        for (int i = 0; i < pair.count(tile); ++i) results.row_lse[pair.at(tile, i)] = top[i] + std::log(sum[i]);
        for (int64_t j = 0; j < asked; ++j) {
            const float* row = scores + j * width;
            Floats highest = splat(-LARGEST), by_row = {}, by_column = {};
            for (int i = 0; i < width; i += LANES) {
                highest = max(load(row + i), highest);
                by_row += exp(load(row + i) - load(top + i)) / load(sum + i);
            }
            const float before = columns.get()[j], now = highest_of(highest);
            const float above = now > before ? now : before;
            for (int i = 0; i < width; i += LANES) by_column += exp(load(row + i) - above);
            total[j] = total[j] * std::exp(before - above) + sum_of(by_column);
            beta[j] += sum_of(by_row);
            columns.get()[j] = above;
        }
    }
    for (int64_t j = 0; j < asked; ++j) {
        const double share = beta[j] / pair.words.count, whole = total[j] == 0 ? 1 : total[j];
        results.column_lse[pair.asked_at(j)] = static_cast<float>(columns.get()[j] + std::log(whole));
        results.beta[pair.asked_at(j)] = static_cast<float>(share);
        weights.get()[j] = static_cast<float>(share / whole);
    }
    for (int64_t tile = 0; tile < pair.tiles(); ++tile) {
        const int width = pair.width(tile);
        const float* scores = pair.scores(tile, true);
        for (int i = 0; i < width; i += LANES) {
            Floats found = {};
            for (int64_t j = 0; j < asked; ++j)
                found += exp(load(scores + j * width + i) - columns.get()[j]) * weights.get()[j];
            store(sum + i, found);
        }
        for (int i = 0; i < pair.count(tile); ++i)
            narrow(results.attention.at(b, 0, 0) +
                       pair.words.place[tile * TILE_ROWS + i] * bytes(results.attention.number),
                   sum + i, 1, 1, results.attention.number);
    }
}

inline void aoa_backward_pair(const AoaCall& call, const AoaBackward& given, int64_t b) {
    Pair pair(call, b);
    const int padded = pair.padded;
    const int64_t asked = pair.asked.count;
    const auto zero = pair.floats(padded);
    std::memset(zero.get(), 0, padded * sizeof(float));
    for (int64_t i = 0; i < call.len_d && (call.document_mask || pair.empty()); ++i)
        pair.put(given.grad_document, i, zero.get());
    for (int64_t j = 0; j < call.len_q && (call.question_mask || pair.empty()); ++j)
        pair.put(given.grad_question, j, zero.get());
    if (pair.empty()) return;

    alignas(ALIGNMENT) float grad[TILE_ROWS], top[TILE_ROWS], sum[TILE_ROWS];
    const auto fetch_grad = [&](int64_t tile) {
        for (int i = 0; i < pair.width(tile); ++i) {
            grad[i] = 0;
            if (i >= pair.count(tile)) continue;
            const int64_t word = pair.words.place[tile * TILE_ROWS + i];
            widen(grad + i, given.grad.at(b, 0, 0) + word * given.grad.strides[3] * bytes(given.grad.number), 1, 1,
                  given.grad.number);
        }
    };
    const std::unique_ptr<double[]> means(new double[asked]()), total(new double[asked]());
    const bool kept = call.kept != nullptr;
    const auto columns = pair.floats(asked), weights = pair.floats(asked), mean = pair.floats(asked);
    for (int64_t j = 0; j < asked; ++j) columns.get()[j] = given.column_lse[pair.asked_at(j)];
    for (int64_t tile = 0; tile < pair.tiles(); ++tile) {
        const int width = pair.width(tile);
        const float* scores = pair.scores(tile, kept);
        fetch_grad(tile);
        for (int64_t j = 0; j < asked; ++j) {
            Floats by_column = {}, weighted = {};
            for (int i = 0; i < width; i += LANES) {
                const Floats one = exp(load(scores + j * width + i) - columns.get()[j]);
                by_column += one, weighted += one * load(grad + i);
            }
            total[j] += sum_of(by_column), means[j] += sum_of(weighted);
        }
    }
    // the lse was rounded: its softmax adds up to not quite 1
    for (int64_t j = 0; j < asked; ++j) {
        const double whole = total[j] == 0 ? 1 : total[j];
        mean.get()[j] = static_cast<float>(means[j] / whole);
        weights.get()[j] = static_cast<float>(given.beta[pair.asked_at(j)] / whole);
    }
    const auto sums = pair.floats(asked * padded), gradient = pair.floats(asked * TILE_ROWS);
    const auto turned = pair.floats(TILE_ROWS * padded), found = pair.floats(TILE_ROWS * padded);
    std::memset(sums.get(), 0, asked * padded * sizeof(float));
    const float share = 1.0f / static_cast<float>(pair.words.count);
    for (int64_t tile = 0; tile < pair.tiles(); ++tile) {
        const int width = pair.width(tile);
        const float* scores = pair.scores(tile, true);
        pair.fetch_document(tile);
        fetch_grad(tile);
        row_softmax(scores, asked, width, top, sum);
        for (int i = 0; i < width; i += LANES) {
            const Floats inverse = 1.0f / load(sum + i), highest = load(top + i), own = load(grad + i);
            Floats expected = {};  // h
            for (int64_t j = 0; j < asked; ++j)
                expected += exp(load(scores + j * width + i) - highest) * inverse * mean.get()[j];
            for (int64_t j = 0; j < asked; ++j) {
                const Floats score = load(scores + j * width + i);
                const Floats by_column = exp(score - columns.get()[j]) * weights.get()[j];
                const Floats by_row = exp(score - highest) * inverse * share;
                store(gradient.get() + j * width + i,
                      by_column * (own - mean.get()[j]) + by_row * (mean.get()[j] - expected));
            }
        }
        product(pair.questions().transposed(), {gradient.get(), width}, {turned.get(), width}, call.features, width,
                asked, Scaled{1});
        for (int c = call.features; c < padded; ++c) std::memset(turned.get() + c * width, 0, width * sizeof(float));
        transpose(found.get(), padded, turned.get(), width, padded, width);
        for (int i = 0; i < pair.count(tile); ++i)
            pair.put(given.grad_document, pair.words.place[tile * TILE_ROWS + i], found.get() + i * padded);
        product({gradient.get(), width, 1}, {const_cast<float*>(pair.document_rows()), padded}, {sums.get(), padded},
                asked, padded, pair.count(tile), Added{});
    }
    for (int64_t j = 0; j < asked; ++j) pair.put(given.grad_question, pair.asked.place[j], sums.get() + j * padded);
}

inline void aoa_forward(const AoaCall& call, const AoaForward& results) {
    parallel(call.threads, call.batch, [&](int64_t b) { aoa_forward_pair(call, results, b); });
}
inline void aoa_backward(const AoaCall& call, const AoaBackward& given) {
    parallel(call.threads, call.batch, [&](int64_t b) { aoa_backward_pair(call, given, b); });
}

}  // namespace ISA
