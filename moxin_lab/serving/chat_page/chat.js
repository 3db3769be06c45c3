// The chat page: one conversation with the model of /v1/models, streamed from /v1/chat/completions.
// Everything that a person or a model wrote is put in as text (textContent), never as markup.
"use strict";

const at = (id) => document.getElementById(id);
let model = null;
let messages = []; // {role, content} as the server reads them
let picture = null; // the data: URI of the image to send with the next message
let answering = null; // the AbortController of the answer that is coming

function headers() {
  const key = at("key").value.trim();
  return {
    "Content-Type": "application/json",
    ...(key ? { Authorization: `Bearer ${key}` } : {}),
  };
}

function say(text, problem = false) {
  at("status").textContent = text;
  at("status").className = problem ? "problem" : "";
}

async function problemOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function findModel() {
  let response;
  try {
    response = await fetch("/v1/models", { headers: headers() });
  } catch {
    say("The server cannot be reached.", true);
    return;
  }
  at("key-row").hidden = response.status !== 401 && !at("key").value;
  if (!response.ok) {
    at("model").textContent = "";
    say(response.status === 401 ? "Give the API key." : await problemOf(response), true);
    return;
  }
  model = (await response.json()).data[0];
  at("model").textContent = model.id;
  at("image-row").hidden = !model.vision;
  say("");
}

function add(role, text, image) {
  const item = document.createElement("li");
  item.className = `message ${role}`;
  const who = document.createElement("h2");
  who.textContent = role === "user" ? "You" : "Model";
  item.append(who);
  if (image) {
    const shown = document.createElement("img");
    shown.src = image;
    shown.alt = "The image that you sent";
    item.append(shown);
  }
  const body = document.createElement("p");
  body.className = "text";
  body.textContent = text;
  item.append(body);
  at("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

function showSources(item, sources) {
  const box = document.createElement("section");
  box.className = "sources";
  const title = document.createElement("h3");
  title.textContent = sources.length ? "Sources" : "No source was found";
  box.append(title);
  for (const source of sources) {
    const details = document.createElement("details");
    const summary = document.createElement("summary");
    const place = source.headings.join(" › ") || source.title;
    summary.textContent = `[${source.number}] ${place}`;
    const text = document.createElement("p");
    text.textContent = source.text;
    const where = document.createElement("p");
    where.className = "where";
    where.textContent = `${source.document}, paragraph ${source.paragraph}`;
    details.append(summary, text, where);
    box.append(details);
  }
  item.append(box);
}

async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const lines = rest.split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function answer() {
  const conversation = messages; // a new one may begin while the answer comes
  answering = new AbortController();
  at("send").disabled = true;
  at("stop").hidden = false;
  say("The model is answering…");
  const item = add("assistant", "");
  const body = item.querySelector(".text");
  let text = "";
  let problem = "";
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers(),
      body: JSON.stringify({ model: model.id, messages: conversation, stream: true, temperature: 0 }),
      signal: answering.signal,
    });
    if (!response.ok) throw new Error(await problemOf(response));
    let sources = null;
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      sources = event.sources ?? sources;
      text += event.choices[0]?.delta.content ?? "";
      body.textContent = text;
      item.scrollIntoView({ block: "end" });
    }
    if (sources) showSources(item, sources);
  } catch (error) {
    if (error.name !== "AbortError") problem = error.message;
  }
  if (problem && !text) {
    item.remove();
    conversation.pop(); // what was not answered has no place in the conversation
  } else {
    // An empty answer has no place in a conversation either; chat templates refuse it.
    conversation.push({ role: "assistant", content: text.trim() ? text : "…" });
  }
  say(problem && `Not answered: ${problem}`, Boolean(problem));
  answering = null;
  at("send").disabled = false;
  at("stop").hidden = true;
}

async function send(event) {
  event.preventDefault();
  const text = at("question").value.trim();
  if (!text || answering) return;
  if (!model) {
    await findModel();
    if (!model) return;
  }
  const content = picture
    ? [{ type: "image_url", image_url: { url: picture } }, { type: "text", text }]
    : text;
  add("user", text, picture);
  messages.push({ role: "user", content });
  at("question").value = "";
  setPicture(null);
  await answer();
  at("question").focus();
}

function setPicture(uri) {
  picture = uri;
  at("picture").hidden = !uri;
  if (uri) {
    at("preview").src = uri;
    reset(); // the model sees one image in a conversation
    say("A new conversation, about this image.");
  } else {
    at("preview").removeAttribute("src");
    at("file").value = "";
  }
}

function readPicture() {
  const file = at("file").files[0];
  if (!file) return;
  const reader = new FileReader();
  reader.addEventListener("load", () => setPicture(reader.result));
  reader.addEventListener("error", () => say("The file cannot be read.", true));
  reader.readAsDataURL(file);
}

function reset() {
  answering?.abort();
  messages = [];
  at("messages").replaceChildren();
  say("");
}

at("form").addEventListener("submit", send);
at("reset").addEventListener("click", () => {
  reset();
  setPicture(null);
  at("question").focus();
});
at("stop").addEventListener("click", () => answering?.abort());
at("remove").addEventListener("click", () => setPicture(null));
at("file").addEventListener("change", readPicture);
at("key").addEventListener("change", findModel);
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") answering?.abort();
});
findModel();
at("question").focus();
