/** Talking to the server, and to the person in front of the screen. */

/** The server's answer as an object. Throws an Error whose message is fit for people. */
export async function api(method, path, body) {
  const options = { method };
  if (body !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("No connection. Please try again in a moment.");
  }
  const data = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Error(data.error ?? "Something went wrong. Please try again.");
  }
  return data;
}

export const find = (selector, within = document) => within.querySelector(selector);

/** A fresh copy of the element inside `<template id=…>`. */
export const copyOf = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

let toastTimer;

/** A short message at the foot of the page, read aloud too; `action` is { label, run }. */
export function toast(message, action) {
  const box = find("#toast");
  const text = document.createElement("span");
  text.textContent = message;
  box.replaceChildren(text);
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = action.label;
    button.addEventListener("click", () => {
      box.classList.remove("shown");
      action.run();
    });
    box.append(button);
  }
  box.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => box.classList.remove("shown"), action ? 7000 : 4000);
}

/** Run a change; when it fails, say why. True when it worked. */
export async function attempt(change) {
  try {
    await change();
    return true;
  } catch (error) {
    toast(error.message);
    return false;
  }
}

/**
 * Load now, then every `seconds` while the page is in view, and when it comes back into view.
 * A first load that fails shows `#failure` with its button to try again.
 */
export function keepFresh(load, seconds) {
  const failure = find("#failure");
  let loaded = false;
  const once = async () => {
    try {
      await load();
      loaded = true;
      failure.hidden = true;
    } catch (error) {
      if (!loaded) {
        find("p", failure).textContent = error.message;
        failure.hidden = false;
      }
    }
    document.body.classList.toggle("loading", !loaded && failure.hidden);
  };
  const look = () => document.visibilityState === "visible" && once();
  find("button", failure).addEventListener("click", once);
  document.addEventListener("visibilitychange", look);
  setInterval(look, seconds * 1000);
  return once();
}

/** Keep focus where it was while `change` moves elements about. */
export function keepingFocus(change) {
  const focused = document.activeElement;
  change();
  if (focused instanceof HTMLElement && focused.isConnected && focused !== document.body) {
    focused.focus({ preventScroll: true });
  }
}
