/* Random views of images, one image at a time so that it stays in the cache: driftline/adapters/augmentation.py says
 * what they are, and has the same operations on tensors. */
#include "sums.h"

enum { OPERATIONS = 5, TAPS = 5, MARGIN = TAPS / 2, PLACES = 4 };

typedef struct {
    int64_t images, channels, height, width;
    const float *x;        /* (images, channels, height, width) */
    const int64_t *order;  /* (images, OPERATIONS): of the colour's operations */
    const float *colour;   /* (images, OPERATIONS): their factors */
    const float *place;    /* (images, PLACES): cosine and sine over the zoom, shift to the right and down */
    const float *mirror;   /* (images): -1 to change left and right, or 1 */
    const float *taps;     /* (images, MARGIN + 1): the blur's, from the centre */
    const float *noise;    /* as x */
    float *out;            /* as x */
    float *space;          /* channels * (height * width + (height + 4) * (width + 4)) + 3 * (width + 4) */
} views_plan;

/* Not a number stays so, here and below. */
static inline float at_least(float x, float low) { return x < low ? low : x; }

static inline float at_most(float x, float high) { return x > high ? high : x; }

static inline float to_unit(float x) { return at_most(at_least(x, 0.0f), 1.0f); }

static inline float gray(float r, float g, float b) { return 0.2989f * r + 0.587f * g + 0.114f * b; }

static float mean_of(const float *x, int64_t size)
{
    floats sums = {0};
    float rest = 0.0f;
    int64_t i = 0;
    for (; i + WIDE <= size; i += WIDE)
        sums += load(x + i);
    for (; i < size; i++)
        rest += x[i];
    return (sum_wide(sums) + rest) / (float)size;
}

/* x <- factor x + shift: brightness and contrast. */
OUT_OF_LINE void stretch(float *x, int64_t size, float factor, float shift)
{
    for (int64_t i = 0; i < size; i++)
        x[i] = to_unit(x[i] * factor + shift);
}

OUT_OF_LINE void gamma_of(float *x, int64_t size, float power)
{
    for (int64_t i = 0; i < size; i++) {
        float now = at_most(exponential(power * logarithm(at_least(x[i], 1e-8f))), 1.0f);
        x[i] = x[i] == x[i] ? now : x[i];
    }
}

OUT_OF_LINE void saturation(float *restrict r, float *restrict g, float *restrict b, int64_t size, float factor)
{
    for (int64_t i = 0; i < size; i++) {
        float rest = (1.0f - factor) * gray(r[i], g[i], b[i]);
        r[i] = to_unit(r[i] * factor + rest);
        g[i] = to_unit(g[i] * factor + rest);
        b[i] = to_unit(b[i] * factor + rest);
    }
}

/* Hues are in sixths of the circle; a gray pixel, whose spread is 0, has numerators 0. */
OUT_OF_LINE void hue(float *restrict r, float *restrict g, float *restrict b, int64_t size, float part)
{
    for (int64_t i = 0; i < size; i++) {
        float red = r[i], green = g[i], blue = b[i];
        float high = largest(largest(red, green), blue), low = -largest(largest(-red, -green), -blue);
        float spread = high - low;
        float numerator = red == high ? green - blue : green == high ? blue - red : red - green;
        float start = red == high ? 0.0f : green == high ? 2.0f : 4.0f;
        float sixth = numerator / largest(spread, 1.17549435e-38f) + (start + 6.0f * part);
        sixth = sixth < 0.0f ? sixth + 6.0f : sixth >= 6.0f ? sixth - 6.0f : sixth;
        r[i] = low + spread * to_unit(absolute(sixth - 3.0f) - 1.0f);
        g[i] = low + spread * to_unit(2.0f - absolute(sixth - 2.0f));
        b[i] = low + spread * to_unit(2.0f - absolute(sixth - 4.0f));
    }
}

static void jitter(float *x, int64_t channels, int64_t size, const int64_t *order, const float *factors)
{
    float *g = x + size, *b = g + size;
    for (int turn = 0; turn < OPERATIONS; turn++) {
        float factor = factors[order[turn]], mean;
        switch (order[turn]) {
        case 0: stretch(x, channels * size, factor, 0.0f); break;
        case 1:
            mean = channels == 3 ? gray(mean_of(x, size), mean_of(g, size), mean_of(b, size)) : mean_of(x, size);
            stretch(x, channels * size, factor, (1.0f - factor) * mean);
            break;
        case 2:
            if (channels == 3)
                saturation(x, g, b, size, factor);
            break;
        case 3:
            if (channels == 3)
                hue(x, g, b, size, factor);
            break;
        default: gamma_of(x, channels * size, factor);
        }
    }
}

/* For a row of the warped image: the pixel up and to the left of where each of its pixels comes from, and how far on
 * from there. The last row and column have none after them, so that the one before is taken, and the way is 1. Whatever
 * the numbers, it is within the image. */
OUT_OF_LINE void trace_row(const views_plan *p, const float *place, float mirror, int64_t row, int32_t *restrict from,
                           float *restrict right, float *restrict down)
{
    float middle = 0.5f * (float)(p->width - 1), centre = 0.5f * (float)(p->height - 1);
    float along = (float)(row - MARGIN) - centre - place[3];
    float last_x = (float)(p->width - 1), last_y = (float)(p->height - 1);
    float most_x = at_least(last_x - 1.0f, 0.0f), most_y = at_least(last_y - 1.0f, 0.0f);
    float base_x = place[1] * along + middle, base_y = place[0] * along + centre;
    int32_t width = (int32_t)p->width, wide = width + 2 * MARGIN;
    for (int32_t i = 0; i < wide; i++) {
        float across = mirror * ((float)(i - MARGIN) - middle) - place[2];
        float x = at_most(largest(place[0] * across + base_x, 0.0f), last_x);
        float y = at_most(largest(base_y - place[1] * across, 0.0f), last_y);
        int32_t column = (int32_t)at_most(x, most_x), line = (int32_t)at_most(y, most_y);
        from[i] = line * width + column;
        right[i] = x - (float)column;
        down[i] = y - (float)line;
    }
}

static void warp(const views_plan *p, int64_t image, const float *x, float *warped, float *space)
{
    int64_t wide = p->width + 2 * MARGIN, tall = p->height + 2 * MARGIN, size = p->height * p->width;
    int64_t next = p->width > 1, below = p->height > 1 ? p->width : 0;
    float *right = space, *down = right + wide;
    int32_t *from = (int32_t *)(down + wide);
    for (int64_t row = 0; row < tall; row++) {
        trace_row(p, p->place + PLACES * image, p->mirror[image], row, from, right, down);
        for (int64_t c = 0; c < p->channels; c++) {
            const float *plane = x + c * size;
            float *to = warped + (c * tall + row) * wide;
            for (int64_t i = 0; i < wide; i++) {
                const float *upper = plane + from[i], *lower = upper + below;
                float above = upper[0] + right[i] * (upper[next] - upper[0]);
                float under = lower[0] + right[i] * (lower[next] - lower[0]);
                to[i] = above + down[i] * (under - above);
            }
        }
    }
}

/* y <- the blur along one axis, whose neighbours are a step apart. */
static inline float blurred(const float *x, int64_t step, const float *taps)
{
    return taps[0] * x[0] + taps[1] * (x[-step] + x[step]) + taps[2] * (x[-2 * step] + x[2 * step]);
}

OUT_OF_LINE void blur_row(const float *x, int64_t width, const float *taps, const float *restrict noise,
                          float *restrict column, float *restrict out)
{
    int64_t wide = width + 2 * MARGIN;
    for (int64_t i = 0; i < wide; i++)
        column[i] = blurred(x + i, wide, taps);
    for (int64_t i = 0; i < width; i++)
        out[i] = to_unit(blurred(column + MARGIN + i, 1, taps) + noise[i]);
}

void image_views(const views_plan *p)
{
    int64_t size = p->height * p->width, wide = p->width + 2 * MARGIN, tall = p->height + 2 * MARGIN;
    float *jittered = p->space, *warped = jittered + p->channels * size, *row = warped + p->channels * tall * wide;
    for (int64_t image = 0; image < p->images; image++) {
        int64_t start = image * p->channels * size;
        for (int64_t i = 0; i < p->channels * size; i++)
            jittered[i] = to_unit(p->x[start + i]);
        jitter(jittered, p->channels, size, p->order + OPERATIONS * image, p->colour + OPERATIONS * image);
        warp(p, image, jittered, warped, row);
        for (int64_t line = 0; line < p->channels * p->height; line++) {
            const float *centre = warped + (line / p->height * tall + line % p->height + MARGIN) * wide;
            int64_t at = start + line * p->width;
            blur_row(centre, p->width, p->taps + (MARGIN + 1) * image, p->noise + at, row, p->out + at);
        }
    }
}
