// Gradients of the scores of one tile of queries, from what reaches the rows' weights.
#pragma once
#include "activation.h"
#include "given_lse.h"

namespace ISA {

// A tile of keys: their weights after dropout, and dS, as (key, lane).
struct ScoreGradient {
    KeyRange range;
    Strided key;  // (feature, key), or in pairs of keys
    float *weights, *gradient;
    float *slope, *logarithms;  // of the soft cap, and of the weights; or null
};

class TileGradient {
  public:
    TileRows query, grad_output;
    const bool paired;

    static size_t size(const Call& call) {
        return 2 * TileRows::size(call.head_dim) + 2 * TileRows::size(call.value_dim) +
               KeyTiles::size(call.head_dim, SHORT) + KeyTiles::size(call.value_dim) +
               KeyPairs::size(call.head_dim, SHORT) + KeyPairs::size(call.value_dim) + RowPairs::size(call.head_dim) +
               RowPairs::size(call.value_dim) + 2 * MaskTile::SIZE + 4 * SHORT * SIZE * sizeof(float);
    }
    TileGradient(Scratch& scratch, const Call& call, const Backward& given, const Sequence& sequence,
                 const RowTile& tile)
        : query(scratch, call.head_dim),
          grad_output(scratch, call.value_dim),
          paired(in_pairs(call)),
          unit(paired),
          call(call),
          given(given),
          sequence(sequence),
          tile(tile),
          output(scratch, call.value_dim),
          keys(scratch, call.key, call.head_dim, SHORT),
          values(scratch, call.value, call.value_dim),
          key_pairs(scratch, call.key, call.head_dim, SHORT),
          value_pairs(scratch, call.value, call.value_dim),
          query_pairs(scratch, call.head_dim),
          output_pairs(scratch, call.value_dim),
          mask(scratch, call.mask),
          grad_weights(scratch, given.grad_weights),
          gaussians(call, sequence, tile),
          factors(call, tile, gaussians),
          pairs{key_pairs, {}},
          scores{call, sequence, tile, query, keys, mask, gaussians, paired ? &pairs : nullptr} {
        for (ScoreGradient& block : blocks)
            block = {{},
                     {},
                     scratch.take(SIZE),
                     scratch.take(SIZE),
                     call.softcap > 0 ? scratch.take(SIZE) : nullptr,
                     given.entropy ? scratch.take(SIZE) : nullptr};
        query.fetch(tile, sequence, call.query, call.head_dim);
        if (given.grad_output) grad_output.fetch(tile, sequence, given.grad_output, call.value_dim);
        if (call.softmax()) fetch_rows();
        if (!paired) return;
        pairs.queries = query_pairs.lanes(query, tile.width);
        if (given.grad_output) grad_outputs = output_pairs.lanes(grad_output, tile.width);
    }

    // Queries and what reaches their outputs, as (pair of lanes, feature).
    Rows paired_queries() const { return query_pairs.rows(query, tile.width); }
    Rows paired_grad_outputs() const { return output_pairs.rows(grad_output, tile.width); }

    alignas(ALIGNMENT) float grad_center[TILE_ROWS] = {}, grad_sigma[TILE_ROWS] = {};  // times sigma

    // Calls visit(block) for every tile of keys that some row may look at.
    template <class Visit>
    void each(Visit visit) {
        if (!call.softmax())
            each_activated(visit);
        else if ((tile.last - 1) / TILE_KEYS - tile.first / TILE_KEYS < SHORT)
            each_of_short_rows(visit);
        else
            each_of_long_rows(visit);
    }

  private:
    const MatrixUnit unit;
    static constexpr int SHORT = 4;  // tiles of keys that are kept, all of a row
    static constexpr int64_t SIZE = TILE_KEYS * TILE_ROWS;
    const Call& call;
    const Backward& given;
    const Sequence& sequence;
    const RowTile& tile;
    TileRows output;
    KeyTiles keys, values;
    KeyPairs key_pairs, value_pairs;
    RowPairs query_pairs, output_pairs;
    Rows grad_outputs = {};  // in pairs
    MaskTile mask, grad_weights;
    Gaussians gaussians;
    Factors factors;
    ScorePairOperands pairs;
    TileScores scores;
    ScoreGradient blocks[SHORT];
    alignas(ALIGNMENT) float row[TILE_ROWS], entropy[TILE_ROWS];  // what is subtracted from every gradient of a row
    alignas(ALIGNMENT) int32_t varies[TILE_ROWS];                 // 0 where the lse is infinite: it is a constant

    bool find(KeyRange range, int slot) {
        ScoreGradient& block = blocks[slot];
        block.range = range;
        if (!scores.find(range, slot, block.weights, block.slope, block.key)) return false;
        block.key =
            paired ? key_pairs.turned(sequence, tile.kv_head, range, mask.seen(), slot) : block.key.transposed();
        return true;
    }

    template <class Visit>
    void each_activated(Visit visit) {
        for (const KeyRange range : KeyRanges(tile.first, tile.last)) {
            if (!find(range, 0)) continue;
            ScoreGradient& block = blocks[0];
            find_gradient(block);
            activation_gradient(call.selector, block.weights, block.gradient, range.count(), tile.width);
            activate(call.selector, block.weights, range.count(), tile.width);
            visit(block);
        }
    }

    // All tiles are kept: nothing is computed twice, and what cancels does so exactly.
    template <class Visit>
    void each_of_short_rows(Visit visit) {
        OnlineSoftmax online;
        int count = 0;
        for (const KeyRange range : KeyRanges(tile.first, tile.last)) {
            if (!find(range, count)) continue;
            find_gradient(blocks[count]);  // here, as the mask is at hand
            online.meet(blocks[count].weights, range.count(), tile.width);
            ++count;
        }
        RowBases bases;
        bases.take(online, tile.width);
        for (int i = 0; i < count; ++i) {
            weigh(bases, blocks[i]);
            if (given.grad_output || grad_weights) add_means(blocks[i]);
        }
        for (int i = 0; i < count; ++i) {
            subtract(blocks[i]);
            visit(blocks[i]);
        }
    }

    template <class Visit>
    void each_of_long_rows(Visit visit) {
        const RowBases bases = row_bases(given.lse, scores, blocks[0].weights);
        ScoreGradient& block = blocks[0];
        if (given.grad_output && given.output && !grad_weights)
            add_products();
        else if (given.grad_output || grad_weights)
            for (const KeyRange range : KeyRanges(tile.first, tile.last))
                if (find_weighed(range, bases)) add_means(block);
        for (const KeyRange range : KeyRanges(tile.first, tile.last)) {
            if (!find_weighed(range, bases)) continue;
            subtract(block);
            visit(block);
        }
    }
    bool find_weighed(KeyRange range, const RowBases& bases) {
        if (!find(range, 0)) return false;
        find_gradient(blocks[0]);
        weigh(bases, blocks[0]);
        return true;
    }

    void fetch_rows() {
        for (int i = 0; i < tile.width; ++i) {
            const bool used = i < tile.count;
            const int64_t place = used ? row_place(call, sequence, tile.head[i], tile.row[i]) : 0;
            row[i] = used && given.row ? given.row[place] : 0;
            entropy[i] = used && given.entropy ? given.entropy[place] : 0;
            varies[i] = used && !(given.lse[place] >= LARGEST);
        }
    }
    // The weighted mean of what reaches a row's weights, as the product of the output with its own gradient.
    void add_products() {
        output.fetch(tile, sequence, given.output, call.value_dim);
        for (int i = 0; i < tile.count; ++i) {
            const float *left = output.rows + i * output.padded, *right = grad_output.rows + i * output.padded;
            Floats sum = {};
            for (int c = 0; c < output.padded; c += LANES) sum += load(left + c) * load(right + c);
            for (int lane = 0; lane < LANES; ++lane) row[i] += sum[lane];
        }
    }
    void add_means(const ScoreGradient& block) {
        for (int i = 0; i < tile.width; i += LANES) {
            Floats sum = {};
            for (int j = 0; j < block.range.count(); ++j)
                sum += load(block.weights + j * tile.width + i) * load(block.gradient + j * tile.width + i);
            store(row + i, load(row + i) + sum);
        }
    }

    // What reaches the softmax's weights.
    void find_gradient(const ScoreGradient& block) {
        const int width = tile.width, count = block.range.count();
        const int64_t begin = block.range.begin, end = block.range.end;
        if (given.grad_output && paired) {
            product_of_pairs(value_pairs.rows(sequence, tile.kv_head, block.range, mask.seen()), grad_outputs,
                             {block.gradient, width}, count, width, KeyPairs::depth(call.value_dim), Scaled{1});
        } else if (given.grad_output) {
            const Strided value = values.fetch(sequence, tile.kv_head, begin, end, mask.seen());
            product(value, {grad_output.lanes, width}, {block.gradient, width}, count, width, call.value_dim,
                    Scaled{1});
        } else {
            std::memset(block.gradient, 0, count * width * sizeof(float));
        }
        if (grad_weights) {
            grad_weights.fetch_entries(tile, begin, end);
            for (int j = 0; j < count; ++j)
                for (int i = 0; i < width; i += LANES) {
                    float* place = block.gradient + j * width + i;
                    store(place, load(place) + grad_weights.bias(j, i));
                }
        }
        factors.multiply(block.gradient, begin, end);
    }
    void weigh(const RowBases& bases, const ScoreGradient& block) const {
        if (block.logarithms) bases.logarithms(block.weights, block.logarithms, block.range.count(), tile.width);
        bases.weigh(block.weights, block.range.count(), tile.width);
    }
    // dS = p (g - row - entropy log p), in the place of g; then dropout of the weights.
    void subtract(const ScoreGradient& block) {
        const int width = tile.width;
        if (gaussians.place == Gaussians::AFTER) add_to_gaussians(block, block.weights);
        for (int j = 0; j < block.range.count(); ++j)
            for (int i = 0; i < width; i += LANES) {
                float* place = block.gradient + j * width + i;
                Floats one = load(place) - load(row + i);
                if (block.logarithms) one -= load(entropy + i) * load(block.logarithms + j * width + i);
                store(place, load(varies + i) != 0 ? one * load(block.weights + j * width + i) : Floats{});
            }
        if (gaussians.place == Gaussians::INSIDE) add_to_gaussians(block, nullptr);
        factors.multiply(block.weights, block.range.begin, block.range.end);
    }
    // The gradients of centres and sigmas: sums over the keys of gradients times distances, and of these squared.
    void add_to_gaussians(const ScoreGradient& block, const float* weights) {
        for (int64_t key = block.range.begin; key < block.range.end; ++key)
            for (int i = 0; i < tile.width; i += LANES) {
                const int64_t at = (key - block.range.begin) * tile.width + i;
                const Floats one = weights ? load(block.gradient + at) * load(weights + at) : load(block.gradient + at);
                store(grad_center + i, load(grad_center + i) + one * gaussians.distance(key, i));
                store(grad_sigma + i, load(grad_sigma + i) + one * gaussians.square(key, i));
            }
    }
};

}  // namespace ISA
