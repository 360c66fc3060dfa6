// SVG fragments and how they become pixels. A fragment is {body, box}: markup and its view box.
import { createRequire } from 'node:module';
import { createAvatar } from '@dicebear/core';
import * as collection from '@dicebear/collection';
import { Resvg } from '@resvg/resvg-js';

const require = createRequire(import.meta.url);
const icons = new Map();
let fragments = 0;

/** A name that no other fragment of this process has: ids are global in an SVG document. */
export const uniqueId = () => `f${fragments++}`;

function ownIds(body) {
  const prefix = uniqueId();
  return body
    .replace(/\bid="/g, `id="${prefix}-`)
    .replace(/url\(#/g, `url(#${prefix}-`)
    .replace(/href="#/g, `href="#${prefix}-`);
}

/** DiceBear style and options => fragment. */
export function avatar(style, options) {
  const svg = createAvatar(collection[style], { ...options, backgroundColor: ['transparent'] }).toString();
  const [, box, body] = svg.match(/<svg[^>]*viewBox="([^"]*)"[^>]*>([\s\S]*)<\/svg>/);
  return { body: ownIds(`<g fill="none">${body.replace(/<metadata[\s\S]*<\/metadata>/, '')}</g>`), box };
}

export const avatarSchema = (style) => collection[style].schema.properties;

/** Icon set => its table, read once. */
export function iconSet(set) {
  if (!icons.has(set)) icons.set(set, require(`@iconify-json/${set}/icons.json`));
  return icons.get(set);
}

/** Icon set and key => fragment, or null where the set has no such icon. */
export function icon(set, key) {
  const { icons: table, aliases, width, height } = iconSet(set);
  const data = table[key] ?? table[aliases?.[key]?.parent ?? `${key}-face`];
  return data
    ? { body: ownIds(data.body), box: `0 0 ${data.width ?? width ?? 16} ${data.height ?? height ?? 16}` }
    : null;
}

/** The side of a fragment's view box: the unit of stroke widths. */
export const boxSize = ({ box }) => Number(box.split(' ')[2]);

/** Wraps a fragment in an SVG filter. */
export function filtered({ body, box }, filter, margin = 0.2) {
  const id = uniqueId();
  const region = `x="${-margin}" y="${-margin}" width="${1 + 2 * margin}" height="${1 + 2 * margin}"`;
  return {
    box,
    body: `<filter id="${id}" ${region} color-interpolation-filters="sRGB">${filter}</filter><g filter="url(#${id})">${body}</g>`,
  };
}

/** Places a fragment in a 64-unit picture: stretched, flipped, turned and scaled about `anchor`, then moved. */
export function place(
  { body, box },
  { flip = false, scale = 1, stretch = [1, 1], skew = 0, turn = 0, move = [0, 0], anchor = [32, 32] },
) {
  const [x, y] = anchor;
  const transform =
    `translate(${x + move[0]} ${y + move[1]}) rotate(${turn}) skewX(${skew}) ` +
    `scale(${(flip ? -scale : scale) * stretch[0]} ${scale * stretch[1]}) translate(${-x} ${-y})`;
  return `<g transform="${transform}"><svg width="64" height="64" viewBox="${box}">${body}</svg></g>`;
}

/** Markup in 64 units on a plain `background` (or on markup that fills the picture) => RGBA pixels. */
export function rasterize(markup, background, size_px) {
  const ground = background.startsWith('<') ? background : `<rect width="64" height="64" fill="#${background}"/>`;
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 64 64">` +
    `${ground}${markup}</svg>`;
  return new Resvg(svg, { fitTo: { mode: 'width', value: size_px }, font: { loadSystemFonts: false } }).render().pixels;
}
