// One batch on the page: its progress, followed to its end, cancelled, run again.

import { call, isOver, readKey, save } from "./api.js";
import { make, pretty, terms, time } from "./dom.js";

const LOOK_MS = 1000;

export class BatchView {
  constructor(parent, { report }) {
    this.report = report;
    this.content = make("div");
    this.cancel = make("button", { type: "button", hidden: true, className: "cancel" }, "Cancel");
    this.retry = make("button", { type: "button", hidden: true, className: "retry" }, "Retry what failed");
    this.results = make("a", { hidden: true, className: "results" }, "Results (JSON lines)");
    this.cancel.addEventListener("click", () => this.act("", "DELETE"));
    this.retry.addEventListener("click", () => this.act("/retry", "POST"));
    this.results.addEventListener("click", (event) => this.saveResults(event));
    parent.replaceChildren(this.content, make("div", { className: "row" }, this.results, this.cancel, this.retry));
  }

  follow(id) {
    this.stop();
    this.path = `batches/${encodeURIComponent(id)}`;
    this.following = new AbortController();
    this.lookOn(this.following.signal);
  }

  stop() {
    this.following?.abort();
  }

  async lookOn(signal) {
    while (!signal.aborted) {
      try {
        const batch = await call(this.path, { signal });
        this.report(null);
        this.show(batch);
        if (isOver(batch)) return;
      } catch (error) {
        if (signal.aborted || error.name === "AbortError") return;
        this.report(error);
        if (!error.passes) return;
      }
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    }
  }

  async act(path, method) {
    this.stop();
    this.cancel.disabled = this.retry.disabled = true;
    try {
      this.show(await call(this.path + path, { method }));
      this.report(null);
      this.following = new AbortController();
      this.lookOn(this.following.signal);
    } catch (error) {
      this.report(error);
    } finally {
      this.cancel.disabled = this.retry.disabled = false;
    }
  }

  /** A link suffices without an API key: then the browser writes them as they come. */
  async saveResults(event) {
    if (!readKey()) return;
    event.preventDefault();
    try {
      await save(this.results.href, this.results.download);
      this.report(null);
    } catch (error) {
      this.report(error);
    }
  }

  show(batch) {
    const text = JSON.stringify(batch);
    if (text === this.shown) return; // a selection in it stays
    this.shown = text;
    const badge = make("span", { className: `badge ${batch.status}` }, batch.status);
    const facts = [
      ["service", `${batch.service} ${batch.version}`],
      ["priority", batch.priority],
      ["created", time(batch.created_at)],
      ["finished", time(batch.finished_at)],
      ["dropped", time(batch.expires_at)],
    ];
    const parts = [
      make("p", { className: "id" }, batch.id),
      make("p", {}, badge),
      make("progress", { max: 1, value: batch.progress, ariaLabel: "Progress" }),
      make("dl", { className: "facts counts" }, ...terms([["inputs", batch.total], ...Object.entries(batch.counts)])),
      make("h3", {}, "About it"),
      make("dl", { className: "facts" }, ...terms(facts)),
    ];
    if (Object.keys(batch.metadata).length) parts.push(make("h3", {}, "Metadata"), pretty(batch.metadata));
    this.content.replaceChildren(...parts);
    this.results.href = `${this.path}/results`;
    this.results.download = `batch-${batch.id}.ndjson`;
    this.results.hidden = !isOver(batch);
    this.cancel.hidden = isOver(batch);
    this.retry.hidden = !isOver(batch) || batch.counts.failed + batch.counts.cancelled === 0;
  }
}
