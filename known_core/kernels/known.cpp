// The hyper-models for the CPU: each weight's states in, its predictions out, in one pass.
//
// chain is KNOWN (known_core/hypermodel.py), fan the scale-free design (known_core/scale_free.py). A block of weights
// stays in registers and L1 from the first layer to the last, so nothing but states and predictions is moved, and the
// products run at the speed of a matrix multiplication. Vectors are GCC's and Clang's own extension, so there is one
// source for every instruction set: setup.py compiles it for several, cpu.py takes the best. The order of the parameters
// is described in packing.py.

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <cstring>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 8;  // ROWS * VECTORS sums have to fit the 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 4;  // here they are 16
#else
constexpr int LANES = 4, ROWS = 4;
#endif
constexpr int VECTORS = 3;
constexpr int BLOCK = LANES * VECTORS;  // weights

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef double wide __attribute__((vector_size(LANES * sizeof(double))));
typedef int32_t ivec __attribute__((vector_size(LANES * sizeof(int32_t))));

constexpr int STATES = 5;
constexpr int HIDDEN = 64, SQUEEZED = 8, FEATURES = 32;  // of KNOWN
constexpr int UNITS = 16;  // hidden ones of the scale-free design
constexpr float EXPONENT_LIMIT = 60.0f, HISTORY_LIMIT = 1e6f;  // as in hypermodel.py

// NaN stays NaN, as in PyTorch's clamp: what overflowed inside is to be noticed outside.
inline vec lower(vec a, float b) { return a > b ? vec{} + b : a; }
inline vec higher(vec a, float b) { return a < b ? vec{} + b : a; }

// exp for x up to EXPONENT_LIMIT, to 2 units in the last place. Range reduction and polynomial as in Cephes' expf.
inline vec exponential(vec x) {
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    x = higher(lower(x, EXPONENT_LIMIT), -87.0f);
    vec shifted = x * 1.44269504088896341f + ROUND;
    vec n = shifted - ROUND;
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

// tanh with a small relative error near zero too, where residuals lie (Cephes' tanhf).
inline vec hyperbolic_tangent(vec x) {
    vec square = x * x;
    vec p = square * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * square + -5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square + -3.33332819422e-1f;
    vec near = p * square * x + x;
    vec size = x < 0.0f ? -x : x;
    vec far = 1.0f - 2.0f / (exponential(size + size) + 1.0f);
    far = x < 0.0f ? -far : far;
    return size < 0.625f ? near : far;
}

// One stream: INPUTS values a weight, to its share of the head's sum. Returns where the next parameters begin.
template <int INPUTS>
inline const float *stream(const float *p, const vec (*in)[VECTORS], vec *head) {
    vec hidden[HIDDEN + SQUEEZED][VECTORS];  // gated activations, then the squeezed ones, for the last layer
    vec(*z)[VECTORS] = hidden + HIDDEN;

    for (int row = 0; row < SQUEEZED; row++, p += INPUTS + 1)
        for (int v = 0; v < VECTORS; v++) {
            vec sum = vec{} + p[INPUTS];
            for (int i = 0; i < INPUTS; i++) sum += p[i] * in[i][v];
            z[row][v] = higher(sum, 0.0f);
        }

    for (int row = 0; row < HIDDEN; row++, p += INPUTS + 1 + 2 * (SQUEEZED + 1)) {
        const float *exponent = p + INPUTS + 1, *multiplier = exponent + SQUEEZED + 1;
        vec h[VECTORS], e[VECTORS], m[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            h[v] = vec{} + p[INPUTS];
            e[v] = vec{} + exponent[SQUEEZED];
            m[v] = vec{} + multiplier[SQUEEZED];
        }
#pragma GCC unroll 8
        for (int i = 0; i < INPUTS; i++)
            for (int v = 0; v < VECTORS; v++) h[v] += p[i] * in[i][v];
#pragma GCC unroll 8
        for (int i = 0; i < SQUEEZED; i++)
            for (int v = 0; v < VECTORS; v++) {
                e[v] += exponent[i] * z[i][v];
                m[v] += multiplier[i] * z[i][v];
            }
        for (int v = 0; v < VECTORS; v++) hidden[row][v] = m[v] * exponential(e[v] * h[v]);
    }

    for (int rows = 0; rows < FEATURES; rows += ROWS) {
        vec sum[ROWS][VECTORS];
        for (int r = 0; r < ROWS; r++, p++)
            for (int v = 0; v < VECTORS; v++) sum[r][v] = vec{} + *p;
        for (int i = 0; i < HIDDEN + SQUEEZED; i++, p += ROWS)
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < VECTORS; v++) sum[r][v] += p[r] * hidden[i][v];
        for (int r = 0; r < ROWS; r++, p++)
            for (int v = 0; v < VECTORS; v++) head[v] += *p * (sum[r][v] > 0.0f ? sum[r][v] : 0.3f * sum[r][v]);
    }
    return p;
}

// KNOWN on a block. states: the original weights first, then ever more forgotten ones; store(step, values) takes each
// prediction, which then enters the window.
template <typename Store>
inline void chain_block(const float *p, const vec (*states)[VECTORS], int steps, Store store) {
    vec window[STATES][VECTORS];  // the most forgotten first
    for (int s = 0; s < STATES; s++) memcpy(window[s], states[STATES - 1 - s], sizeof(window[s]));
    for (int step = 0; step < steps; step++) {
        vec values[STATES][VECTORS], differences[STATES - 1][VECTORS], head[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            for (int s = 0; s < STATES; s++) values[s][v] = higher(lower(window[s][v], HISTORY_LIMIT), -HISTORY_LIMIT);
            for (int s = 0; s < STATES - 1; s++) differences[s][v] = values[s + 1][v] - values[s][v];
            head[v] = vec{} + p[0];
        }
        const float *next = stream<STATES>(p + 1, values, head);
        stream<STATES - 1>(next, differences, head);
        for (int v = 0; v < VECTORS; v++) {
            for (int s = 0; s < STATES - 1; s++) window[s][v] = window[s + 1][v];
            window[STATES - 1][v] += hyperbolic_tangent(head[v]);
        }
        store(step, window[STATES - 1]);
    }
}

// The scale-free design on a block: a sum of displacements and weight, with coefficients of their own for each weight.
template <typename Store>
inline void fan_block(const float *p, const vec (*states)[VECTORS], int steps, Store store) {
    const float per_unit = p[0], per_size = p[1], unit = p[2], *weight = p + 3;
    p = weight + UNITS * STATES;
    vec inputs[STATES][VECTORS], sizes[STATES][VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        for (int s = 1; s < STATES; s++) inputs[s - 1][v] = (states[s][v] - states[0][v]) * per_unit;
        inputs[STATES - 1][v] = states[0][v] * per_size;
        vec first = inputs[0][v];
        vec sign = first > 0.0f ? vec{} + 1.0f : first < 0.0f ? vec{} - 1.0f : vec{};
        for (int i = 0; i < STATES; i++) sizes[i][v] = higher(lower(inputs[i][v] * sign, 4.0f), -4.0f);
    }
    for (int step = 0; step < steps; step++) {
        vec hidden[UNITS][VECTORS], predicted[VECTORS] = {};
        for (int row = 0; row < UNITS; row++)
            for (int v = 0; v < VECTORS; v++) {
                vec sum = vec{} + p[row];
                for (int i = 0; i < STATES; i++) sum += weight[row * STATES + i] * sizes[i][v];
                hidden[row][v] = sum / (1.0f + exponential(-sum));
            }
        p += UNITS;
        for (int i = 0; i < STATES; i++, p += 1 + UNITS)
            for (int v = 0; v < VECTORS; v++) {
                vec coefficient = vec{} + p[0];
                for (int row = 0; row < UNITS; row++) coefficient += p[1 + row] * hidden[row][v];
                predicted[v] += coefficient * inputs[i][v];
            }
        for (int v = 0; v < VECTORS; v++) predicted[v] = states[0][v] + unit * predicted[v];
        store(step, predicted);
    }
}

// Calls function(states, store) for each block; the last one is filled up with zeros. Rows are stride floats apart.
template <typename Function>
void each_block(const float *states, float *predictions, int64_t stride, int64_t count, Function function) {
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        vec block[STATES][VECTORS] = {};
        const int64_t width = count - begin < BLOCK ? count - begin : BLOCK;
        for (int s = 0; s < STATES; s++) memcpy(block[s], states + s * stride + begin, sizeof(float) * width);
        function(block, [=](int step, const vec *values) {
            memcpy(predictions + step * stride + begin, values, sizeof(float) * width);
        });
    }
}

// sums: (STATES, STATES), the scalar products between the displacements from states[0], and states[0] itself as the last.
void sum_products(const float *states, double *sums, int64_t stride, int64_t count) {
    wide total[STATES][STATES] = {};
    for (int64_t begin = 0; begin < count; begin += LANES) {
        vec row[STATES] = {};
        const int64_t width = count - begin < LANES ? count - begin : LANES;
        for (int s = 0; s < STATES; s++) memcpy(&row[s], states + s * stride + begin, sizeof(float) * width);
        wide values[STATES];
        for (int s = 1; s < STATES; s++) values[s - 1] = __builtin_convertvector(row[s] - row[0], wide);
        values[STATES - 1] = __builtin_convertvector(row[0], wide);
#pragma GCC unroll 8
        for (int i = 0; i < STATES; i++)
#pragma GCC unroll 8
            for (int j = 0; j <= i; j++) total[i][j] += values[i] * values[j];
    }
    for (int i = 0; i < STATES; i++)
        for (int j = 0; j <= i; j++) {
            double sum = 0;
            for (int lane = 0; lane < LANES; lane++) sum += total[i][j][lane];
            sums[i * STATES + j] = sums[j * STATES + i] = sum;
        }
}

struct Call {
    const float *parameters, *states;
    float *predictions;
    Py_ssize_t stride, count;
    int steps;

    bool parse(PyObject *arguments) {
        unsigned long long addresses[3];
        if (!PyArg_ParseTuple(arguments, "KKKnni", addresses, addresses + 1, addresses + 2, &stride, &count, &steps))
            return false;
        parameters = (const float *)addresses[0];
        states = (const float *)addresses[1];
        predictions = (float *)addresses[2];
        return true;
    }
};

void chain(const Call &call) {
    each_block(call.states, call.predictions, call.stride, call.count, [&](const vec(*states)[VECTORS], auto store) {
        chain_block(call.parameters, states, call.steps, store);
    });
}

void fan(const Call &call) {
    each_block(call.states, call.predictions, call.stride, call.count, [&](const vec(*states)[VECTORS], auto store) {
        fan_block(call.parameters, states, call.steps, store);
    });
}

void products(const Call &call) { sum_products(call.states, (double *)call.predictions, call.stride, call.count); }

template <void (*Function)(const Call &)>
PyObject *from_python(PyObject *, PyObject *arguments) {
    Call call;
    if (!call.parse(arguments)) return nullptr;
    Py_BEGIN_ALLOW_THREADS;
    Function(call);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

#define ARGUMENTS "(parameters, states, predictions, stride, count, steps): addresses of float32, strides in floats"
PyMethodDef METHODS[] = {
    {"chain", from_python<chain>, METH_VARARGS, "chain" ARGUMENTS},
    {"products", from_python<products>, METH_VARARGS, "products" ARGUMENTS "; predictions takes (5, 5) float64"},
    {"fan", from_python<fan>, METH_VARARGS, "fan" ARGUMENTS},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "known", nullptr, 0, METHODS, nullptr, nullptr, nullptr, nullptr};

}  // namespace

#define CONCATENATE(a, b) a##b
#define INITIALISE(name) CONCATENATE(PyInit_, name)
PyMODINIT_FUNC INITIALISE(MODULE_NAME)() {
    PyObject *module = PyModule_Create(&MODULE);
    if (module) PyModule_AddIntConstant(module, "ROWS", ROWS);
    return module;
}
