// Curves in the page's colours: one accent, older stages fainter, drawn again when the theme or the width changes.

const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const HEIGHT = 232; // px; the box in known.css is 15rem
const colour = (name) => getComputedStyle(document.querySelector(`.palette .${name}`)).color;

const within = ([low, high]) => [Math.max(low, 0), Math.min(high, 100)]; // percent

function axis(options) {
  const line = colour("line");
  return {
    font: FONT, labelFont: FONT, stroke: colour("muted"), grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 },
    ...options,
  };
}

class Chart {
  constructor(place) {
    this.place = place;
    this.plot = null;
    this.waiting = false;
    new ResizeObserver(() => this.plot?.setSize({ width: place.clientWidth, height: HEIGHT })).observe(place);
    document.addEventListener("known:theme", () => this.redraw());
  }

  later() { // many events come at once: one drawing for all of them
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.redraw(); });
  }

  draw(options, data) {
    this.plot?.destroy();
    this.place.replaceChildren();
    this.plot = new uPlot({ width: this.place.clientWidth, height: HEIGHT, legend: { show: false }, ...options }, data, this.place);
  }
}

export class LossChart extends Chart {
  // Of each stage, its loss by step. Stages differ in length, so their steps are joined on one axis.
  constructor(place, key) {
    super(place);
    this.key = key;
    this.stages = new Map();
  }

  add(stage, step, loss) {
    if (!this.stages.has(stage)) this.stages.set(stage, new Map());
    this.stages.get(stage).set(step, loss);
    this.later();
  }

  redraw() {
    if (!this.stages.size) return;
    const names = [...this.stages.keys()];
    const tables = [...this.stages.values()].map((points) => {
      const steps = [...points.keys()].sort((a, b) => a - b);
      return [steps, steps.map((step) => points.get(step))];
    });
    const accent = colour("accent");
    const style = (index) => {
      const age = names.length - 1 - index;
      return { width: age ? 1.5 : 2.25, alpha: Math.max(0.3, 1 - 0.2 * age), dash: age % 2 ? [6, 3] : [] };
    };
    this.draw({
      scales: { x: { time: false } },
      cursor: { y: false },
      axes: [axis({ label: "step", labelSize: 18, size: 32 }), axis({ size: 52 })],
      series: [{}, ...names.map((label, index) => ({ label, stroke: accent, spanGaps: true, points: { show: false }, ...style(index) }))],
    }, uPlot.join(tables));
    this.key.replaceChildren(...names.map((name, index) => this.entry(name, accent, style(index))));
  }

  entry(name, stroke, { width, alpha, dash }) {
    const sample = document.createElement("canvas");
    [sample.width, sample.height] = [24, 8];
    const pen = sample.getContext("2d");
    Object.assign(pen, { strokeStyle: stroke, lineWidth: width, globalAlpha: alpha });
    pen.setLineDash(dash);
    pen.beginPath();
    pen.moveTo(0, 4);
    pen.lineTo(24, 4);
    pen.stroke();
    const entry = document.createElement("li");
    entry.append(sample, name);
    return entry;
  }
}

export class ForgettingChart extends Chart {
  // Accuracy on its own task: of the weights given (0), then of each state.
  constructor(place) {
    super(place);
    this.states = new Map();
  }

  add(state, accuracy) {
    this.states.set(state, 100 * accuracy);
    this.later();
  }

  redraw() {
    if (!this.states.size) return;
    const states = [...this.states.keys()].sort((a, b) => a - b);
    const accent = colour("accent");
    this.draw({
      scales: { x: { time: false, range: [-0.25, 4.25] }, y: { range: (_, low, high) => within(uPlot.rangeNum(low, high, 0.1, true)) } },
      cursor: { y: false },
      axes: [
        axis({ label: "state", labelSize: 18, size: 32, incrs: [1], values: (_, ticks) => ticks.map((tick) => (tick === 0 ? "given" : tick)) }),
        axis({ size: 62, values: (_, ticks) => ticks.map((tick) => `${+tick.toFixed(2)} %`) }),
      ],
      series: [{}, { label: "accuracy", stroke: accent, width: 2, points: { show: true, size: 8, fill: accent, stroke: accent } }],
    }, [states, states.map((state) => this.states.get(state))]);
  }
}
