/*
 * Elements of the live page. Text gets into the page only as text: there is no markup anywhere in the data, and the
 * security policy refuses it.
 */

const SVG = 'http://www.w3.org/2000/svg';

/** The element with that id. */
export function byId(id) {
  return document.getElementById(id);
}

/** An element with attributes and children; a child that is a text becomes text. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same in an SVG. */
export function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Sets a text, and leaves the page alone if it is the same. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets an attribute; null removes it. */
export function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/**
 * Makes the children of a node those of a list, in its order, and keeps the nodes of items that were there before.
 * @param nodes Map of key -> node, kept by the caller
 * @param make makes the node of a key
 */
export function keyed(parent, nodes, keys, make) {
  const wanted = new Set(keys);
  for (const [key, node] of nodes) {
    if (wanted.has(key)) continue;
    node.remove();
    nodes.delete(key);
  }
  let before = parent.firstElementChild;
  for (const key of keys) {
    let node = nodes.get(key);
    if (node === undefined) {
      node = make(key);
      nodes.set(key, node);
    }
    if (node === before) before = before.nextElementSibling;
    else parent.insertBefore(node, before);
  }
}
