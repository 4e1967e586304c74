// What a run does now, how far it is, and how long it will still take.
const OVER = ["stopped", "failed", "ready"];

const duration = (seconds) => {
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.round(seconds) % 60} s` : `${Math.round(seconds)} s`;
};

const stageLine = () => {
  let progress = null;
  let lastHeard = 0;
  const stage = make("span", { class: "stage" });
  const left = make("span", { class: "left" });
  const bar = make("progress", { class: "bar", max: 1, "aria-label": "Progress" });

  const show = (told) => {
    if (told.progress) [progress, lastHeard] = [told.progress, Date.now()];
    const isRunning = told.state === "running" && progress;
    const isOver = OVER.includes(told.state);
    stage.textContent = isRunning ? progress.title : told.notice || (isOver ? "" : "Starting");
    const hasCount = progress && progress.of;
    const count = progress && progress.unit === "bytes" ? bytes : String;
    if (isRunning && hasCount) stage.textContent += ` · ${count(progress.done ?? 0)} of ${count(progress.of)}`;
    left.textContent = "";
    if (isRunning && progress.seconds_left != null) {
      const gone = (Date.now() - lastHeard) / 1000;
      left.textContent = `about ${duration(Math.max(0, progress.seconds_left - gone))} left`;
    }
    bar.hidden = isOver || told.state === "draft";
    if (hasCount && told.state !== "queued") bar.value = (progress.done ?? 0) / progress.of;
    else bar.removeAttribute("value");
  };

  return {
    line: make("div", { class: "line" }, stage, left),
    bar,
    show,
    isEmpty: () => !stage.textContent,
    // How many steps are planned, once it trains.
    steps: () => (progress && progress.title === "Training" ? progress.of : 0),
    clear: () => {
      progress = null;
      stage.replaceChildren();
      left.replaceChildren();
    },
  };
};
