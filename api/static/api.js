// Speaks to the API. Addresses are relative to the page, so that it also works below a proxy's path.

const KEY = "services-api-key";

export const readKey = () => sessionStorage.getItem(KEY) || "";

export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** An answer that is no success: a problem document (RFC 9457), or none at all (status 0). */
export class Problem extends Error {
  constructor(status, document) {
    super(document?.detail || `The server answered ${status} and did not say why.`);
    this.status = status;
    this.errors = document?.errors || [];
  }

  /** Whether the same request may succeed in a moment. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** The answer's JSON. With `wait`, the API holds it until the job ends, at most so many seconds. */
export async function call(path, { method = "GET", body, wait, signal } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (wait) headers.Prefer = `wait=${wait}`;
  const answer = await ask(path, { method, headers, body, signal }, (response) => response.text());
  return parseOr(answer, undefined);
}

/** Save an answer as a file. A link cannot bear the API key. */
export async function save(path, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await ask(path, { headers: {} }, (response) => response.blob()));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // by then it is being written
}

/** The body of an answer that is a success, as `read` has it. */
async function ask(path, { headers, ...options }, read) {
  if (readKey()) headers.Authorization = `Bearer ${readKey()}`;
  let response, body;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
    body = await (response.ok ? read(response) : response.text());
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The API does not answer: it has stopped, or the network is away." });
  }
  if (!response.ok) throw new Problem(response.status, parseOr(body, undefined));
  return body;
}

export const jobPath = (id) => `jobs/${encodeURIComponent(id)}`;

export const isOver = (job) => job.status !== "queued" && job.status !== "running";

function parseOr(text, otherwise) {
  try {
    return JSON.parse(text, exactly);
  } catch {
    return otherwise;
  }
}

/** Whole numbers beyond 2^53 are shown as they were sent, where the browser can (it keeps them as texts). */
function exactly(_, value, context) {
  const loses = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
  return loses && context && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
}
