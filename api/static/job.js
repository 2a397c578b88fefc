// One job on the page: shown, followed to its end, cancelled, run again.

import { call, isOver, jobPath } from "./api.js";
import { duration, make, pretty, terms, time } from "./dom.js";

const HELD_S = 20;
const FIRST_LOOK_MS = 100;
const LONGEST_PAUSE_MS = 2000;

const STAGES = ["queued", "preprocess", "predict", "postprocess", "total"];

export class JobView {
  /** `full`: with its input, attempts and metadata; `changed`: called when its status is another. */
  constructor(parent, { full = false, report, changed, open = null }) {
    this.full = full;
    this.report = report;
    this.changed = changed;
    this.open = open;
    this.content = make("div");
    this.cancel = make("button", { type: "button", hidden: true, className: "cancel" }, "Cancel");
    this.retry = make("button", { type: "button", hidden: true, className: "retry" }, "Retry");
    this.cancel.addEventListener("click", () => this.act(jobPath(this.id), "DELETE"));
    this.retry.addEventListener("click", () => this.act(`${jobPath(this.id)}/retry`, "POST"));
    parent.replaceChildren(this.content, make("div", { className: "row" }, this.cancel, this.retry));
  }

  /** Show a job as it goes, until it has ended. */
  follow(id, job = null) {
    this.stop();
    this.id = id;
    this.following = new AbortController();
    if (job) this.show(job);
    if (job && isOver(job) && !this.full) return;
    const { signal } = this.following;
    this.holdOn(signal);
    this.lookOn(signal);
  }

  stop() {
    this.following?.abort();
  }

  /** The API holds these answers until the job ends. */
  async holdOn(signal) {
    while (!signal.aborted) {
      const since = Date.now();
      const wait = this.held ? HELD_S : 0; // the first look shows at once what there is
      this.held = true;
      const job = await this.read(signal, wait);
      if (wait && job && !isOver(job) && Date.now() - since < 1000) await pause(1000); // the server holds no longer
    }
    this.held = false;
  }

  /** Beside it, a look now and then shows when it starts. */
  async lookOn(signal) {
    for (let ms = FIRST_LOOK_MS; !signal.aborted; ms = Math.min(ms * 2, LONGEST_PAUSE_MS)) {
      await pause(ms);
      if (!signal.aborted) await this.read(signal, 0);
    }
  }

  async read(signal, wait) {
    try {
      const job = await call(jobPath(this.id) + (this.full ? "?include=attempts,input" : ""), { signal, wait });
      if (signal.aborted) return null;
      this.show(job);
      if (isOver(job)) this.stop();
      return job;
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return null;
      this.report(error);
      if (error.passes) await pause(2000);
      else this.stop();
      return null;
    }
  }

  async act(path, method) {
    this.cancel.disabled = this.retry.disabled = true;
    try {
      const job = await call(path, { method });
      this.report(null);
      this.follow(this.id, job);
    } catch (error) {
      this.report(error);
    } finally {
      this.cancel.disabled = this.retry.disabled = false;
    }
  }

  show(job) {
    const text = JSON.stringify(job);
    if (text === this.shown) return; // a selection in it stays
    this.shown = text;
    if (this.last !== job.id + job.status) this.changed();
    this.last = job.id + job.status;
    const parts = [this.head(job), steps(job), timings(job)];
    if (job.status === "running" && job.progress !== null) {
      parts.push(make("progress", { max: 1, value: job.progress, ariaLabel: "Progress" }));
    }
    if (job.error) parts.push(...errorOf(job.error));
    if (job.status === "succeeded") parts.push(make("h3", {}, "Output"), pretty(job.output));
    if (this.full) parts.push(...this.more(job));
    this.content.replaceChildren(...parts);
    this.cancel.hidden = isOver(job);
    this.retry.hidden = !isOver(job) || job.status === "succeeded";
  }

  head(job) {
    if (!this.open) return make("p", { className: "id" }, job.id);
    const open = make("button", { type: "button", className: "link id" }, job.id);
    open.addEventListener("click", () => this.open(job.id));
    return make("p", {}, open);
  }

  more(job) {
    const facts = [
      ["service", `${job.service} ${job.version}`],
      ["priority", job.priority],
      ["attempt", job.attempt],
      ["batch size", job.batch_size],
      ["created", time(job.created_at)],
      ["not before", time(job.not_before)],
      ["started", time(job.started_at)],
      ["finished", time(job.finished_at)],
      ["dropped", time(job.expires_at)],
    ];
    const parts = [make("h3", {}, "About it"), make("dl", { className: "facts" }, ...terms(facts))];
    if ("input" in job) parts.push(make("h3", {}, "Input"), pretty(job.input));
    if (Object.keys(job.metadata).length) parts.push(make("h3", {}, "Metadata"), pretty(job.metadata));
    if (job.attempts?.length) parts.push(make("h3", {}, "Attempts"), attempts(job.attempts));
    return parts;
  }
}

function steps(job) {
  const reached = isOver(job) ? [job.started_at ? "running" : null, job.status] : [job.status === "running" ? "running" : null];
  const names = ["queued", ...reached.filter(Boolean)];
  const place = job.status === "queued" ? placeOf(job) : "";
  const items = names.map((name, i) =>
    make("li", { className: i + 1 < names.length ? "past" : `now ${name}` }, name + (i === 0 ? place : "")),
  );
  if (!isOver(job)) items.push(...["running", "ended"].slice(names.length - 1).map((name) => make("li", {}, name)));
  return make("ol", { className: "steps" }, ...items);
}

/** What stands before a queued job, and about when it will start, as far as that is known. */
function placeOf(job) {
  if (job.not_before && new Date(job.not_before) > Date.now()) return ` (not before ${time(job.not_before)})`;
  const parts = [];
  if (job.position) parts.push(`${job.position} before it`);
  if (job.estimated_start_at) parts.push(`starts about ${new Date(job.estimated_start_at).toLocaleTimeString()}`);
  return parts.length ? ` (${parts.join(", ")})` : "";
}

function timings(job) {
  const pairs = STAGES.map((stage) => [stage, duration(job.timings[`${stage}_ms`])]);
  return make("dl", { className: "timings" }, ...terms(pairs));
}

function errorOf(error) {
  const fields = (error.errors || []).map((field) => make("li", {}, `${field.loc.join(".")}: ${field.msg}`));
  const again = error.retryable ? "may succeed when it is run again" : "would fail again";
  return [
    make("h3", {}, "Error"),
    make("p", { className: "problem" }, `${error.code}: ${error.message}`),
    make("p", { className: "note" }, again),
    make("ul", { className: "errors" }, ...fields),
  ];
}

function attempts(list) {
  const names = ["Attempt", "Outcome", "Started", "Took", "Batch of", "Worker", "Error"];
  const rows = list.map((one) => {
    const took = one.started_at && one.ended_at ? duration(new Date(one.ended_at) - new Date(one.started_at)) : "";
    const error = one.error ? `${one.error.code}: ${one.error.message}` : "";
    const outcome = one.charged ? one.outcome : `${one.outcome} (not charged)`;
    const cells = [one.attempt, outcome, time(one.started_at), took, one.batch_size ?? "", one.worker, error];
    return make("tr", {}, ...cells.map((cell) => make("td", {}, String(cell))));
  });
  const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
  return make("div", { className: "scroll", tabIndex: 0 }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
