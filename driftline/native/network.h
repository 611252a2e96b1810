/* A multilayer perceptron for a batch: scores, the gradient of a loss by them, and the way back through a layer. */
#ifndef DRIFTLINE_NETWORK_H
#define DRIFTLINE_NETWORK_H

#include "vectors.h"

typedef enum { IDENTITY, RELU, LEAKY_RELU, TANH, SIGMOID } activation_kind;
typedef enum { SQUARED_ERROR, CROSS_ENTROPY } loss_kind;

/* Values of an activation function, in place. */
OUT_OF_LINE void activate(activation_kind kind, float slope, float *restrict h, int64_t size)
{
    switch (kind) {
    case RELU:
        for (int64_t i = 0; i < size; i++)
            h[i] = h[i] < 0.0f ? 0.0f : h[i];
        break;
    case LEAKY_RELU:
        for (int64_t i = 0; i < size; i++)
            h[i] = h[i] < 0.0f ? slope * h[i] : h[i];
        break;
    case TANH:
        for (int64_t i = 0; i < size; i++)
            h[i] = hyperbolic_tangent(h[i]);
        break;
    case SIGMOID:
        for (int64_t i = 0; i < size; i++)
            h[i] = sigmoid(h[i]);
        break;
    case IDENTITY:
        break;
    }
}

/* Multiplies deltas with the derivative, which is a function of the activation h itself. */
OUT_OF_LINE void times_derivative(activation_kind kind, float slope, const float *restrict h, float *restrict delta,
                                    int64_t size)
{
    switch (kind) {
    case RELU:
        for (int64_t i = 0; i < size; i++)
            delta[i] = h[i] <= 0.0f ? 0.0f : delta[i];
        break;
    case LEAKY_RELU:
        for (int64_t i = 0; i < size; i++)
            delta[i] = h[i] <= 0.0f ? slope * delta[i] : delta[i];
        break;
    case TANH:
        for (int64_t i = 0; i < size; i++)
            delta[i] *= multiply_add(-h[i], h[i], 1.0f);
        break;
    case SIGMOID:
        for (int64_t i = 0; i < size; i++)
            delta[i] *= h[i] * (1.0f - h[i]);
        break;
    case IDENTITY:
        break;
    }
}

/* out (batch, outputs) <- x (batch, inputs) W^T + bias: four samples at a time for each row, then four rows at a time
 * for each sample that is left. */
static inline void affine(const float *weight, const float *bias, int64_t inputs, int64_t outputs, const float *x,
                          int64_t batch, float *out)
{
    int64_t grouped = batch - batch % 4;
    float dots[4];
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t b = 0; b < grouped; b += 4) {
            four_dots(weight + o * inputs, x + b * inputs, inputs, inputs, dots);
            for (int k = 0; k < 4; k++)
                out[(b + k) * outputs + o] = dots[k];
        }
    for (int64_t b = grouped; b < batch; b++) {
        int64_t o = 0;
        for (; o + 4 <= outputs; o += 4)
            four_dots(x + b * inputs, weight + o * inputs, inputs, inputs, out + b * outputs + o);
        for (; o < outputs; o++)
            out[b * outputs + o] = dot(weight + o * inputs, x + b * inputs, inputs);
    }
    if (bias)
        for (int64_t b = 0; b < batch; b++)
            add_scaled(out + b * outputs, 1.0f, bias, outputs);
}

/* Gradient by the scores (batch, outputs) of the mean squared error over batch and outputs. */
static inline void squared_error_gradient(const float *restrict scores, const float *restrict targets, int64_t size,
                                          float *restrict delta)
{
    float twice = 2.0f / (float)size;
    for (int64_t i = 0; i < size; i++)
        delta[i] = twice * (scores[i] - targets[i]);
}

/* Gradient by the scores of the mean cross-entropy over the batch: (softmax - one hot) / batch. */
OUT_OF_LINE void cross_entropy_gradient(const float *restrict scores, const int64_t *restrict labels, int64_t batch,
                                          int64_t outputs, float *restrict delta)
{
    for (int64_t b = 0; b < batch; b++, scores += outputs, delta += outputs) {
        float top = scores[0], sum = 0.0f;
        for (int64_t o = 1; o < outputs; o++)
            top = largest(top, scores[o]);
        for (int64_t o = 0; o < outputs; o++) {
            delta[o] = exponential(scores[o] - top);
            sum += delta[o];
        }
        for (int64_t o = 0; o < outputs; o++)
            delta[o] /= sum * (float)batch;
        delta[labels[b]] -= 1.0f / (float)batch;
    }
}

#endif
