// Attention-over-Attention (Cui et al. 2017, arXiv 1607.04423): of the scores M = document question^T, the softmax of
// each column over the document and of each row over the question, with M as tiles of the whole question by document
// words (lanes). Words that a mask hides are left out. Backward: with A and B the softmax of M's columns and rows,
// g = A^T grad and h = B g, dM = A beta (grad - g) + B (g - h) / n, n the number of document words.
#pragma once
#include "../lanes.h"
#include "../parallel.h"
#include "../product.h"
#include "../row_tile.h"

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
    int padded;  // features, to a multiple of LANES

    Pair(const AoaCall& call, int64_t b)
        : words(call.document_mask ? call.document_mask + b * call.len_d : nullptr, call.len_d),
          asked(call.question_mask ? call.question_mask + b * call.len_q : nullptr, call.len_q),
          padded(round_up(call.features, LANES)),
          call(call),
          b(b),
          width(round_up(asked.count, LANES)),
          question(floats(int64_t{width} * padded)),
          turned(room(int64_t{width} * padded)),
          copy(floats(direct() ? 0 : int64_t{TILE_ROWS} * padded)),
          by_word(floats(int64_t{TILE_ROWS} * width)),
          space(room((stores() ? tiles() : 1) * TILE_ROWS * width)) {
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
    int lanes(int64_t tile) const { return round_up(count(tile), LANES); }
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
    // The scores of a tile, `TILE_ROWS` lanes for each word of the question; -inf in lanes without a word.
    const float* find_scores(int64_t tile) const {
        const Rows rows = document(tile);
        product({rows.data, rows.row, 1}, {turned.get(), width}, {by_word.get(), width}, count(tile), width,
                call.features, Bounded{});
        return turn_scores(tile);
    }
    // The same once more, found anew where they take too much memory to be stored.
    const float* scores(int64_t tile) const { return stores() ? scores_of(tile) : find_scores(tile); }

    // From forward to backward, (document word, question word).
    void keep_scores(int64_t tile) const {
        for (int i = 0; i < count(tile); ++i)
            std::memcpy(kept(tile, i), by_word.get() + i * width, asked.count * sizeof(float));
    }
    const float* kept_scores(int64_t tile) const {
        for (int i = 0; i < count(tile); ++i)
            std::memcpy(by_word.get() + i * width, kept(tile, i), asked.count * sizeof(float));
        return turn_scores(tile);
    }

  private:
    // An infinite score counts as the largest number.
    struct Bounded {
        INLINE Floats operator()(Floats sum, const float*, int) const { return min(splat(LARGEST), sum); }
    };
    const AoaCall& call;
    int64_t b;
    int width;  // words of the question, to a multiple of LANES
    Memory question, turned, copy, by_word, space;

    bool direct() const {
        const Tensor& from = call.document;
        return from.number == Number::float32 && from.strides[3] == 1 && padded == call.features && !call.document_mask;
    }
    // They take no more memory than the document: they are not computed twice.
    bool stores() const { return call.len_q * 4 <= call.features * bytes(call.document.number); }
    float* scores_of(int64_t tile) const { return space.get() + (stores() ? tile : 0) * TILE_ROWS * width; }
    float* kept(int64_t tile, int i) const { return call.kept + (b * call.len_d + tile * TILE_ROWS + i) * call.len_q; }
    const float* turn_scores(int64_t tile) const {
        float* scores = scores_of(tile);
        transpose(scores, TILE_ROWS, by_word.get(), width, lanes(tile), width);
        for (int64_t j = 0; j < asked.count; ++j)
            for (int i = count(tile); i < lanes(tile); ++i) scores[j * TILE_ROWS + i] = -INFINITY;
        return scores;
    }
};

// A sum over the document for each word of the question: of the words in the same lane of every tile, and of all.
struct DocumentSums {
    std::unique_ptr<double[]> sums;

    explicit DocumentSums(int64_t count) : sums(new double[count * LANES]()) {}
    INLINE void add(int64_t j, Floats more, Floats shrink = splat(1.0f)) {
        using Doubles = double __attribute__((vector_size(LANES * 8)));
        double* place = sums.get() + j * LANES;
        Doubles sum;
        std::memcpy(&sum, place, sizeof sum);
        sum = sum * __builtin_convertvector(shrink, Doubles) + __builtin_convertvector(more, Doubles);
        std::memcpy(place, &sum, sizeof sum);
    }
    double total(int64_t j) const {
        double found = 0;
        for (int lane = 0; lane < LANES; ++lane) found += sums[j * LANES + lane];
        return found;
    }
};

// The softmax over the question of each document word of a tile.
struct QuestionSoftmax {
    Memory exponentials;  // (question word, lane)
    alignas(ALIGNMENT) float top[TILE_ROWS], total[TILE_ROWS], inverse[TILE_ROWS];

    explicit QuestionSoftmax(int64_t count) : exponentials(room(count * TILE_ROWS)) {}
    INLINE Floats exponential(int64_t j, int lane) const { return load(exponentials.get() + j * TILE_ROWS + lane); }
    void find(const float* scores, int64_t count, int lanes) {
        by_lanes(lanes, [&](auto V, int lane) {
            Floats highest[V], sum[V] = {};
            for (int v = 0; v < V; ++v) highest[v] = splat(-LARGEST);
            for (int64_t j = 0; j < count; ++j)
                for (int v = 0; v < V; ++v)
                    highest[v] = max(load(scores + j * TILE_ROWS + lane + v * LANES), highest[v]);
            for (int64_t j = 0; j < count; ++j)
                for (int v = 0; v < V; ++v) {
                    const int64_t at = j * TILE_ROWS + lane + v * LANES;
                    const Floats one = exp(load(scores + at) - highest[v]);
                    store(exponentials.get() + at, one);
                    sum[v] += one;
                }
            for (int v = 0; v < V; ++v) {
                const int i = lane + v * LANES;
                const Floats whole = sum[v] == 0.0f ? splat(1.0f) : sum[v];
                store(top + i, highest[v]), store(total + i, whole), store(inverse + i, 1 / whole);
            }
        });
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
    const int64_t asked = pair.asked.count;
    const Memory tops = floats(asked * LANES, -LARGEST), weights = floats(asked);
    DocumentSums masses(asked), shares(asked);
    QuestionSoftmax rows(asked);
    for (int64_t tile = 0; tile < pair.tiles(); ++tile) {
        const int lanes = pair.lanes(tile);
        const float* scores = pair.find_scores(tile);
        if (call.kept) pair.keep_scores(tile);
        rows.find(scores, asked, lanes);
        for (int64_t j = 0; j < asked; ++j) {
            const float* column = scores + j * TILE_ROWS;
            float* top = tops.get() + j * LANES;
            const Floats before = load(top);
            Floats highest = before, mass = {}, share = {};
            for (int i = 0; i < lanes; i += LANES) highest = max(load(column + i), highest);
            for (int i = 0; i < lanes; i += LANES) {
                mass += exp(load(column + i) - highest);
                share += rows.exponential(j, i) * load(rows.inverse + i);
            }
            store(top, highest);
            masses.add(j, mass, exp(before - highest)), shares.add(j, share);
        }
        for (int i = 0; i < pair.count(tile); ++i) row_lse[pair.word(tile, i)] = rows.top[i] + std::log(rows.total[i]);
    }
    for (int64_t j = 0; j < asked; ++j) {
        float* top = tops.get() + j * LANES;
        const float highest = highest_of(load(top));
        masses.add(j, Floats{}, exp(load(top) - highest));
        const double share = shares.total(j) / pair.words.count, mass = masses.total(j), whole = mass == 0 ? 1 : mass;
        column_lse[pair.asked.place[j]] = static_cast<float>(highest + std::log(whole));
        beta[pair.asked.place[j]] = static_cast<float>(share);
        weights.get()[j] = static_cast<float>(share / whole);
        top[0] = highest;
    }
    alignas(ALIGNMENT) float attention[TILE_ROWS];
    for (int64_t tile = 0; tile < pair.tiles(); ++tile) {
        const float* scores = pair.scores(tile);
        by_lanes(pair.lanes(tile), [&](auto V, int lane) {
            Floats found[V] = {};
            for (int64_t j = 0; j < asked; ++j)
                for (int v = 0; v < V; ++v)
                    found[v] +=
                        exp(load(scores + j * TILE_ROWS + lane + v * LANES) - tops.get()[j * LANES]) * weights.get()[j];
            for (int v = 0; v < V; ++v) store(attention + lane + v * LANES, found[v]);
        });
        for (int i = 0; i < pair.count(tile); ++i)
            narrow(results.attention.at(b, 0, 0) + pair.word(tile, i) * size, attention + i, 1, 1,
                   results.attention.number);
    }
}

inline void aoa_backward_pair(const AoaCall& call, const AoaBackward& given, int64_t b) {
    const Pair pair(call, b);
    const int padded = pair.padded;
    const auto put = [&](const Tensor& to, int64_t word, const float* from) {
        narrow(to.at(b, 0, word), from, to.strides[3], call.features, to.number);
    };
    const Memory zero = floats(padded);
    for (int64_t i = 0; i < call.len_d && (call.document_mask || pair.empty()); ++i)
        put(given.grad_document, i, zero.get());
    for (int64_t j = 0; j < call.len_q && (call.question_mask || pair.empty()); ++j)
        put(given.grad_question, j, zero.get());
    if (pair.empty()) return;

    alignas(ALIGNMENT) float grad[TILE_ROWS] = {};
    const auto fetch_grad = [&](int64_t tile) {
        for (int i = 0; i < pair.lanes(tile); ++i) {
            grad[i] = 0;
            if (i >= pair.count(tile)) continue;
            const int64_t place = pair.word(tile, i) * given.grad.strides[3] * bytes(given.grad.number);
            widen(grad + i, given.grad.at(b, 0, 0) + place, 1, 1, given.grad.number);
        }
    };
    const int64_t asked = pair.asked.count;
    const Memory columns = floats(asked), weights = floats(asked), means = floats(asked);
    for (int64_t j = 0; j < asked; ++j) columns.get()[j] = given.column_lse[b * call.len_q + pair.asked.place[j]];
    DocumentSums masses(asked), gradients(asked);
    for (int64_t tile = 0; tile < pair.tiles(); ++tile) {
        const float* scores = call.kept ? pair.kept_scores(tile) : pair.find_scores(tile);
        fetch_grad(tile);
        for (int64_t j = 0; j < asked; ++j) {
            Floats mass = {}, gradient = {};
            for (int i = 0; i < pair.lanes(tile); i += LANES) {
                const Floats one = exp(load(scores + j * TILE_ROWS + i) - columns.get()[j]);
                mass += one, gradient += one * load(grad + i);
            }
            masses.add(j, mass), gradients.add(j, gradient);
        }
    }
    // the lse was rounded: its softmax adds up to not quite 1
    for (int64_t j = 0; j < asked; ++j) {
        const double mass = masses.total(j), whole = mass == 0 ? 1 : mass;
        means.get()[j] = static_cast<float>(gradients.total(j) / whole);
        weights.get()[j] = static_cast<float>(given.beta[b * call.len_q + pair.asked.place[j]] / whole);
    }
    const Memory sums = floats(asked * padded), found = room(int64_t{TILE_ROWS} * padded);
    const Memory changes = room(asked * TILE_ROWS);  // dM
    QuestionSoftmax rows(asked);
    const float share = 1.0f / static_cast<float>(pair.words.count);
    for (int64_t tile = 0; tile < pair.tiles(); ++tile) {
        const int count = pair.count(tile);
        const float* scores = pair.scores(tile);
        fetch_grad(tile);
        rows.find(scores, asked, pair.lanes(tile));
        by_lanes(pair.lanes(tile), [&](auto V, int lane) {
            Floats mean[V] = {};  // h
            for (int64_t j = 0; j < asked; ++j)
                for (int v = 0; v < V; ++v) mean[v] += rows.exponential(j, lane + v * LANES) * means.get()[j];
            for (int v = 0; v < V; ++v) mean[v] *= load(rows.inverse + lane + v * LANES);
            for (int64_t j = 0; j < asked; ++j)
                for (int v = 0; v < V; ++v) {
                    const int i = lane + v * LANES;
                    const float expected = means.get()[j];
                    const Floats by_column = exp(load(scores + j * TILE_ROWS + i) - columns.get()[j]);
                    const Floats of_column = by_column * weights.get()[j] * (load(grad + i) - expected);
                    const Floats of_row =
                        rows.exponential(j, i) * (load(rows.inverse + i) * share) * (expected - mean[v]);
                    store(changes.get() + j * TILE_ROWS + i, of_column + of_row);
                }
        });
        product({changes.get(), 1, TILE_ROWS}, pair.questions(), {found.get(), padded}, count, padded, asked,
                Scaled{1});
        for (int i = 0; i < count; ++i) put(given.grad_document, pair.word(tile, i), found.get() + i * padded);
        product({changes.get(), TILE_ROWS, 1}, pair.document(tile), {sums.get(), padded}, asked, padded, count,
                Added{});
    }
    for (int64_t j = 0; j < asked; ++j) put(given.grad_question, pair.asked.place[j], sums.get() + j * padded);
}

inline void aoa_forward(const AoaCall& call, const AoaForward& results) {
    parallel(call.threads, call.batch, [&](int64_t b) { aoa_forward_pair(call, results, b); });
}
inline void aoa_backward(const AoaCall& call, const AoaBackward& given) {
    parallel(call.threads, call.batch, [&](int64_t b) { aoa_backward_pair(call, given, b); });
}

}  // namespace ISA
