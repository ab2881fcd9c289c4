// The way to the gateway: JSON in, JSON out, and the event stream of a reply.

const BASE = "/ui/api";
let token = "";

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the gateway answered ${status}`);
    this.status = status;
    this.code = body?.error?.code ?? null;
    this.guardrails = body?.guardrails ?? null;
  }
}

async function request(method, path, body, options = {}) {
  const headers = { ...options.headers };
  if (method !== "GET") headers["x-csrf-token"] = token;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(BASE + path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal: options.signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The gateway can't be reached. Is it still running?");
  }
  if (!response.ok) {
    const error = new ApiError(response.status, await response.json().catch(() => null));
    error.headers = response.headers;
    if (error.code === "no_session") location.assign("/ui/login");
    throw error;
  }
  return response;
}

export const get = async (path) => (await request("GET", path)).json();
export const post = async (path, body, options) => (await request("POST", path, body, options)).json();

export async function session() {
  return remember(await get("/session"));
}

export async function login(key) {
  return remember(await post("/login", { key }));
}

export async function logout() {
  await post("/logout");
  token = "";
}

function remember(session) {
  token = session.csrf ?? "";
  return session;
}

/** Ask for a stream; yields each chunk's object. The response's headers go to `onHeaders`. */
export async function* stream(path, body, signal, onHeaders) {
  const response = await request("POST", path, body, { signal });
  onHeaders(response.headers);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new Error("The connection was lost before the reply was complete.");
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (!data) continue;
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(response.status, chunk);
      yield chunk;
    }
  }
}
