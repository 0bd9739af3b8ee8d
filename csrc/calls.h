// What the binding asks for, in plain numbers, and the functions that answer: one instance per type and width.
#pragma once
#include <array>
#include <cstdint>

// Address and, in elements, sizes and strides of a 4-d tensor.
struct Tensor {
    int64_t address;
    std::array<int64_t, 4> sizes, strides;
};

struct ScoreOptions {
    float scale;
    int left, right, offset;  // -1 is unlimited
    bool windowed() const { return left >= 0 || right >= 0; }
};

struct SoftmaxForwardCall {
    Tensor query, key, value, output;
    int64_t lse;
    int64_t counter;  // an int to count tiles with
    ScoreOptions scores;
    int64_t stream;
};

struct SoftmaxBackwardCall {
    Tensor query, key, value, output, grad_output, grad_query, grad_key, grad_value;
    int64_t lse, row;                // row may be 0
    int64_t counter;                 // an int to count tiles with
    int64_t row_space, query_space;  // floats: 2 x and Width x batch x heads x padded rows, the latter zero
    ScoreOptions scores;
    int64_t stream;
};

template <class T, int Width>
void softmax_forward(const SoftmaxForwardCall& call);
template <class T, int Width>
void softmax_backward(const SoftmaxBackwardCall& call);
