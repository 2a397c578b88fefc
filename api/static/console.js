// The page: services, a form to try one, the list of jobs, and one job in a dialog.

import { BatchView } from "./batch.js";
import { call, keepKey, readKey, Problem } from "./api.js";
import { byId, duration, make, say, sync, time } from "./dom.js";
import { JobView } from "./job.js";

const SERVICES_MS = 2000;
const JOBS_MS = 5000;
const PAGE = 20;

let services = [];
let needsKey = false;
const drafts = new Map(); // service -> the input as it was edited

// -- problems and the key -----------------------------------------------------------------------------------------------

let source = ""; // of the problem that is shown: what polls takes back its own alone

function report(error, from = "act") {
  const box = byId("problem");
  if (error === null) {
    if (from === "act" || from === source) box.hidden = true;
    return;
  }
  if (!(error instanceof Problem)) throw error;
  source = from;
  say(box, error.message);
  box.hidden = false;
  if (error.status === 401) askForKey();
}

/** What is known of the key: whether there is one, and whether the API has refused it. */
function sayKey(isRefused = false) {
  const known = readKey() ? (isRefused ? "API key: refused" : "API key: set") : isRefused ? "API key: needed" : "API key";
  say(byId("key-button"), known);
}

function askForKey() {
  needsKey = true;
  sayKey(true);
  if (byId("key-form").hidden) showKeyForm(true);
}

function showKeyForm(is) {
  byId("key-form").hidden = !is;
  byId("key-button").setAttribute("aria-expanded", String(is));
  if (is) byId("key").focus();
}

byId("key-button").addEventListener("click", () => showKeyForm(byId("key-form").hidden));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
});
byId("key-forget").addEventListener("click", () => useKey(""));

function useKey(key) {
  byId("key").value = "";
  if (!/^[\x21-\x7e]*$/.test(key)) {
    report(new Problem(0, { detail: "An API key has visible ASCII characters only." }));
    return;
  }
  keepKey(key);
  needsKey = false;
  showKeyForm(false);
  report(null);
  sayKey();
  refreshServices();
  refreshJobs();
}

// -- services -----------------------------------------------------------------------------------------------------------

async function refreshServices() {
  if (needsKey) return;
  try {
    services = (await call("services")).services;
    report(null, "poll");
  } catch (error) {
    report(error, "poll");
    loseSight();
    return;
  }
  byId("services-none").hidden = services.length > 0;
  sync(byId("services"), services, (service) => service.name, createCard, updateCard);
  offer(byId("filter-service"), [["", "all"], ...services.map(({ name }) => [name, name])]);
  offer(byId("try-service"), services.map(({ name }) => [name, name]));
  if (services.length && byId("try").hidden) {
    byId("try").hidden = false;
    choose((services.find(({ state }) => state === "ready") || services[0]).name);
  }
}

/** The cards tell what was: nobody knows how the services stand now. */
function loseSight() {
  for (const badge of byId("services").querySelectorAll(".badge")) {
    badge.className = "badge unknown";
    say(badge, "unknown");
  }
}

function createCard(service) {
  const card = make("li", { className: "card" });
  const tryIt = make("button", { type: "button", ariaLabel: `Try ${service.name}` }, "Try it");
  const jobs = make("button", { type: "button", ariaLabel: `Jobs of ${service.name}` }, "Its jobs");
  tryIt.addEventListener("click", () => {
    choose(service.name);
    byId("try-input").focus();
  });
  jobs.addEventListener("click", () => {
    byId("filter-service").value = service.name;
    startList();
    byId("filter-service").focus();
  });
  card.append(
    make("div", { className: "bar" }, make("h3", {}, service.name), make("span", { className: "badge" })),
    make("p", { className: "note" }, `${service.version} · ${service.description}`),
    make("p", { className: "reason", hidden: true }),
    make("dl", { className: "numbers" }, ...["workers", "queued", "oldest"].map(number)),
    make("details", { hidden: true }, make("summary", {}, "Knobs"), make("dl", { className: "knobs" })),
    make("div", { className: "row" }, tryIt, jobs),
  );
  return card;
}

const number = (name) => make("div", {}, make("dt", {}, name), make("dd"));

function updateCard(card, service) {
  const badge = card.querySelector(".badge");
  badge.className = `badge ${service.state}`;
  say(badge, service.state === "no_workers" ? "no workers" : service.state);
  const reason = card.querySelector(".reason");
  reason.hidden = !service.reason;
  say(reason, service.reason || "");
  const oldest = service.oldest_age_s ? duration(service.oldest_age_s * 1000) : "–";
  const values = [service.workers, service.queue_depth, oldest];
  card.querySelectorAll(".numbers dd").forEach((element, i) => say(element, String(values[i])));
  card.querySelector("details").hidden = !service.knobs;
  const knobs = Object.entries(service.knobs || {});
  const shown = JSON.stringify(knobs);
  const list = card.querySelector(".knobs");
  if (list.dataset.shown === shown) return;
  list.dataset.shown = shown;
  list.replaceChildren(
    ...knobs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(JSON.stringify(value)))]),
  );
}

/** Have a <select> offer these, and stay at what was chosen. */
function offer(select, options) {
  const shown = JSON.stringify(options);
  if (select.dataset.shown === shown) return;
  select.dataset.shown = shown;
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

// -- the form -----------------------------------------------------------------------------------------------------------

const input = byId("try-input");
let tried = null;

function choose(name) {
  byId("try-service").value = name;
  input.value = drafts.get(name) ?? exampleOf(name);
  complain([]);
}

function exampleOf(name) {
  const { example } = services.find((service) => service.name === name);
  return JSON.stringify(example ?? {}, null, 2);
}

function complain(lines) {
  byId("try-errors").replaceChildren(...lines.map((line) => make("li", {}, line)));
  input.setAttribute("aria-invalid", String(lines.length > 0));
}

async function submit() {
  const text = input.value;
  try {
    JSON.parse(text);
  } catch (error) {
    complain([`This is no JSON: ${error.message}`]);
    return;
  }
  const about = { service: byId("try-service").value, priority: byId("try-priority").value };
  // The input goes as it was written: a parsed number might not be the same.
  const body = `${JSON.stringify(about).slice(0, -1)},"input":${text}}`;
  complain([]);
  byId("try-submit").disabled = true;
  try {
    const job = await call("jobs", { method: "POST", body });
    report(null);
    tried ??= new JobView(byId("try-result"), { report, changed: refreshJobs, open: openJob });
    tried.follow(job.id, job);
  } catch (error) {
    if (error.errors?.length) complain(error.errors.map(({ loc, msg }) => `${loc.slice(1).join(".") || "body"}: ${msg}`));
    else report(error);
  } finally {
    byId("try-submit").disabled = false;
  }
}

byId("try-form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
byId("try-service").addEventListener("change", (event) => choose(event.target.value));
byId("try-example").addEventListener("click", () => {
  drafts.delete(byId("try-service").value);
  choose(byId("try-service").value);
});
input.addEventListener("input", () => drafts.set(byId("try-service").value, input.value));
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("try-form").requestSubmit();
});

// -- the list -----------------------------------------------------------------------------------------------------------

let cursor = null;
let next = null;
let listing = 0; // an answer that comes after a later question is not shown

function startList() {
  cursor = null;
  return refreshJobs();
}

async function refreshJobs() {
  if (needsKey) return;
  const turn = ++listing;
  const asked = { service: byId("filter-service").value, status: byId("filter-status").value, cursor };
  const query = new URLSearchParams(Object.entries({ ...asked, limit: PAGE }).filter(([, value]) => value));
  let page;
  try {
    page = await call(`jobs?${query}`);
    report(null, "list");
  } catch (error) {
    report(error, "list");
    return;
  }
  if (turn !== listing) return;
  next = page.next_cursor;
  sync(byId("jobs").tBodies[0], page.jobs, (job) => job.id, createRow, updateRow);
  const none = next ? "No such job among those that were looked at; Older looks further." : "No job.";
  say(byId("jobs-none"), none);
  byId("jobs-none").hidden = page.jobs.length > 0;
  byId("jobs").hidden = page.jobs.length === 0;
  byId("older").disabled = !next;
  byId("newest").disabled = !cursor;
}

function createRow(job) {
  const open = make("button", { type: "button", className: "link id" }, job.id);
  open.addEventListener("click", () => openJob(job.id));
  const row = make("tr", {}, make("td", {}, open), make("td"), make("td", {}, make("span")), make("td"));
  row.append(make("td", { className: "number" }), make("td", { className: "number" }));
  return row;
}

function updateRow(row, job) {
  const [, service, status, created, took, attempt] = row.cells;
  status.firstChild.className = `badge ${job.status}`;
  say(status.firstChild, job.status);
  say(service, job.service);
  say(created, time(job.created_at));
  say(took, duration(job.timings.total_ms));
  say(attempt, String(job.attempt));
}

byId("filter").addEventListener("submit", (event) => {
  event.preventDefault();
  startList();
});
byId("filter-service").addEventListener("change", startList);
byId("filter-status").addEventListener("change", startList);
byId("newest").addEventListener("click", startList);
byId("older").addEventListener("click", () => {
  cursor = next;
  refreshJobs();
});

// -- one job, or batch --------------------------------------------------------------------------------------------------

const dialog = byId("job");
let view = null;

function openJob(id) {
  location.hash = `jobs/${encodeURIComponent(id)}`;
}

/** A job's or batch's address is the page's, so that it can be passed on. */
function showAddressed() {
  const found = /^#(jobs|batches)\/(.+)$/.exec(location.hash);
  if (!found) {
    dialog.close();
    return;
  }
  const problem = make("p", { className: "problem", hidden: true });
  problem.setAttribute("role", "alert");
  const body = make("div");
  byId("job-body").replaceChildren(problem, body);
  const reportHere = (error) => {
    problem.hidden = error === null;
    if (error) say(problem, error.message);
    if (error?.status === 401) {
      dialog.close(); // the field for the key is on the page
      report(error);
    }
  };
  view?.stop();
  const isBatch = found[1] === "batches";
  say(byId("job-title"), isBatch ? "Batch" : "Job");
  view = isBatch
    ? new BatchView(body, { report: reportHere })
    : new JobView(body, { full: true, report: reportHere, changed: refreshJobs });
  if (!dialog.open) dialog.showModal();
  view.follow(decode(found[2]));
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // no address of ours: the API will say that it knows no such job
  }
}

byId("job-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  view?.stop();
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
});
window.addEventListener("hashchange", showAddressed);

// -- life ---------------------------------------------------------------------------------------------------------------

function every(ms, refresh) {
  setInterval(() => {
    if (document.visibilityState === "visible") refresh();
  }, ms);
}

byId("flower").href = `http://${location.hostname}:${byId("flower").dataset.port}`;
sayKey();
refreshServices();
refreshJobs();
every(SERVICES_MS, refreshServices);
every(JOBS_MS, () => cursor === null && refreshJobs());
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && refreshServices());
if (location.hash) showAddressed();
