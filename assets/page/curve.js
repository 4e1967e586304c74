// The card of a run's loss: every step faint, what it comes to bold, and the values where pointer or arrow keys are.
const lossCurve = () => {
  let points = [];
  let planned = 0;
  let chosen = null;
  let shown = null;
  const canvas = make("canvas", { class: "curve", role: "img", tabindex: 0, "aria-label": "Loss curve" });
  const readout = make("div", { class: "readout" });
  const head = make("header", {}, make("h3", { text: "Loss" }), readout);
  const card = make("section", { class: "card", "aria-label": "Loss" }, head, canvas);

  const smoothed = () => {
    const keep = Math.min(0.97, Math.max(0.6, 1 - 12 / points.length));
    let sum = 0;
    let weight = 0;
    return points.map(([step, loss]) => {
      sum = keep * sum + (1 - keep) * loss;
      weight = keep * weight + (1 - keep);
      return [step, sum / weight];
    });
  };

  const niceSteps = (low, high, count) => {
    const rough = (high - low || 1) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Number(at.toPrecision(6)));
    return found;
  };

  // Which point is nearest to the chosen step; the last one while none is chosen.
  const place = () => {
    if (chosen === null) return points.length - 1;
    return points.reduce((best, point, at) => (Math.abs(point[0] - chosen) < Math.abs(points[best][0] - chosen) ? at : best), 0);
  };

  const draw = () => {
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width) return;
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const colour = (name) => getComputedStyle(canvas).getPropertyValue(name).trim();
    pen.font = `12px ${getComputedStyle(canvas).fontFamily}`;
    pen.fillStyle = colour("--body-text-color-subdued");
    if (!points.length) {
      pen.textAlign = "center";
      pen.fillText("The curve begins with the first step.", width / 2, height / 2);
      return;
    }
    const smooth = smoothed();
    const sorted = points.map((point) => point[1]).sort((a, b) => a - b);
    const low = sorted[0];
    const high = sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * 0.99))];
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    const [bottom, top] = [Math.max(0, low - room), high + room];
    const last = Math.max(planned, points[points.length - 1][0], 2);
    const box = { left: 52, right: width - 12, top: 10, bottom: height - 38 };
    shown = { box, last };
    const x = (step) => box.left + (step / last) * (box.right - box.left);
    const y = (loss) => box.bottom - ((loss - bottom) / (top - bottom)) * (box.bottom - box.top);

    pen.lineWidth = 1;
    pen.strokeStyle = colour("--border-color-primary");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const loss of niceSteps(bottom, top, 6)) {
      pen.beginPath();
      pen.moveTo(box.left, Math.round(y(loss)) + 0.5);
      pen.lineTo(box.right, Math.round(y(loss)) + 0.5);
      pen.stroke();
      pen.fillText(String(loss), box.left - 8, y(loss));
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const step of niceSteps(0, last, width < 500 ? 4 : 8)) pen.fillText(String(step), x(step), box.bottom + 6);
    pen.fillText("step", (box.left + box.right) / 2, box.bottom + 22);

    const line = (path, wide, faint) => {
      pen.save();
      pen.beginPath();
      pen.rect(box.left, box.top, box.right - box.left, box.bottom - box.top);
      pen.clip();
      pen.beginPath();
      path.forEach(([step, loss], place) => (place ? pen.lineTo(x(step), y(loss)) : pen.moveTo(x(step), y(loss))));
      pen.lineWidth = wide;
      pen.globalAlpha = faint;
      pen.lineJoin = "round";
      pen.strokeStyle = colour("--curve-color");
      pen.stroke();
      if (path.length === 1) pen.fillRect(x(path[0][0]) - 2, y(path[0][1]) - 2, 4, 4);
      pen.restore();
    };
    line(points, 1, 0.35);
    line(smooth, 2.5, 1);

    const at = place();
    if (chosen !== null) {
      pen.strokeStyle = colour("--body-text-color-subdued");
      pen.beginPath();
      pen.moveTo(x(points[at][0]), box.top);
      pen.lineTo(x(points[at][0]), box.bottom);
      pen.stroke();
      pen.fillStyle = colour("--curve-color");
      pen.beginPath();
      pen.arc(x(smooth[at][0]), y(smooth[at][1]), 4, 0, 7);
      pen.fill();
    }
    readout.textContent = `step ${points[at][0]} · loss ${points[at][1].toFixed(4)} · smoothed ${smooth[at][1].toFixed(4)}`;
    canvas.setAttribute("aria-label", `Loss curve, ${readout.textContent}`);
  };

  const choose = (step) => {
    chosen = step;
    draw();
  };
  canvas.addEventListener("pointermove", (event) => {
    if (!shown) return;
    const { box, last } = shown;
    choose(((event.clientX - canvas.getBoundingClientRect().left - box.left) / (box.right - box.left)) * last);
  });
  canvas.addEventListener("pointerleave", () => choose(null));
  canvas.addEventListener("blur", () => choose(null));
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !points.length) return;
    event.preventDefault();
    choose(points[Math.min(points.length - 1, Math.max(0, place() + by))][0]);
  });
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });

  return {
    card,
    // Show more points of a run of so many steps.
    add: (more, steps) => {
      planned = steps || 0;
      for (const point of more) {
        while (points.length && points[points.length - 1][0] >= point[0]) points.pop();
        points.push(point);
      }
      if (points.length > 2400) points = points.filter((_, place) => place % 2 === 0 || place === points.length - 1);
      draw();
    },
    clear: () => {
      points = [];
      planned = 0;
      shown = null;
      readout.replaceChildren();
      draw();
    },
  };
};
