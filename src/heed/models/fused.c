/* RMSNorm and rotary embeddings in one pass over memory each. */

#include <math.h>
#include <stdint.h>

#define SMALL 16384 /* numbers that one thread has done with before another has begun */

/* y = x r w with r = 1 / sqrt(mean(x^2) + eps); x and y are [rows, width], r [rows], w [width]. */
void rms_norm(const float *x, const float *w, float *y, float *r, int64_t rows, int64_t width, float eps)
{
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t i = 0; i < rows; i++) {
        const float *from = x + i * width;
        float *to = y + i * width, squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < width; j++) squares += from[j] * from[j];
        float scale = r[i] = 1 / sqrtf(squares / width + eps);
#pragma omp simd
        for (int64_t j = 0; j < width; j++) to[j] = from[j] * scale * w[j];
    }
}

/* (x1, x2) -> (x1 cos1 - x2 sin1, x2 cos2 + x1 sin2) for the halves of the last dimension, or with `back` the gradient of that.
   x and y are [batch, heads, length, 2 half] with strides of the first three; cosines and sines [length, 2 half], `angle_stride` apart for
   each of the batch. */
void rotate(const float *x, const float *cosines, const float *sines, float *y, int64_t batch, int64_t heads, int64_t length, int64_t half,
            int64_t x_batch, int64_t x_head, int64_t x_token, int64_t y_batch, int64_t y_head, int64_t y_token, int64_t angle_stride, int back)
{
#pragma omp parallel for collapse(2) if (2 * batch * heads * length * half > SMALL)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t t = 0; t < length; t++) {
            const float *c1 = cosines + b * angle_stride + t * 2 * half, *s1 = sines + b * angle_stride + t * 2 * half;
            const float *c2 = c1 + half, *s2 = s1 + half;
            for (int64_t h = 0; h < heads; h++) {
                const float *x1 = x + b * x_batch + h * x_head + t * x_token, *x2 = x1 + half;
                float *y1 = y + b * y_batch + h * y_head + t * y_token, *y2 = y1 + half;
                if (back)
#pragma omp simd
                    for (int64_t d = 0; d < half; d++) {
                        y1[d] = x1[d] * c1[d] + x2[d] * s2[d];
                        y2[d] = x2[d] * c2[d] - x1[d] * s1[d];
                    }
                else
#pragma omp simd
                    for (int64_t d = 0; d < half; d++) {
                        y1[d] = x1[d] * c1[d] - x2[d] * s1[d];
                        y2[d] = x2[d] * c2[d] + x1[d] * s2[d];
                    }
            }
        }
}
