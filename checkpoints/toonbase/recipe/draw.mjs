// SVG fragments and how they become pictures. A fragment is {body, box}: markup and its view box.
import { createRequire } from 'node:module';
import { deflateSync, crc32 } from 'node:zlib';
import { writeFileSync } from 'node:fs';
import { createAvatar } from '@dicebear/core';
import * as collection from '@dicebear/collection';
import { Resvg } from '@resvg/resvg-js';
import { ICON_SETS } from './objects.mjs';

const require = createRequire(import.meta.url);
const ICONS = Object.fromEntries(ICON_SETS.map((set) => [set, require(`@iconify-json/${set}/icons.json`)]));
let fragments = 0;

/** Ids are global in an SVG document: two fragments in one picture must not share any. */
function ownIds(body) {
  const prefix = `f${fragments++}-`;
  return body
    .replace(/\bid="/g, `id="${prefix}`)
    .replace(/url\(#/g, `url(#${prefix}`)
    .replace(/href="#/g, `href="#${prefix}`);
}

/** DiceBear style and options => fragment. */
export function avatar(style, options) {
  const svg = createAvatar(collection[style], { ...options, backgroundColor: ['transparent'] }).toString();
  const [, box, body] = svg.match(/<svg[^>]*viewBox="([^"]*)"[^>]*>([\s\S]*)<\/svg>/);
  return { body: ownIds(`<g fill="none">${body.replace(/<metadata[\s\S]*<\/metadata>/, '')}</g>`), box };
}

/** Icon set and key => fragment, or null where the set has no such icon. */
export function icon(set, key) {
  const { icons, aliases, width, height } = ICONS[set];
  const data = icons[key] ?? icons[aliases?.[key]?.parent ?? `${key}-face`];
  return data
    ? { body: ownIds(data.body), box: `0 0 ${data.width ?? width ?? 16} ${data.height ?? height ?? 16}` }
    : null;
}

/** Two rings and a bridge, for styles that have no glasses of their own. */
export function withGlasses({ body, box }, { x: [left, right], y, r }) {
  const ring = (x) => `<circle cx="${x}" cy="${y}" r="${r}"/>`;
  const frame = `${ring(left)}${ring(right)}<path d="M${left + r} ${y}H${right - r}"/>`;
  return {
    box,
    body: `${body}<g fill="#fff" fill-opacity=".25" stroke="#26222a" stroke-width="${r / 4}">${frame}</g>`,
  };
}

/** Recolours ink: Open Peeps draws most hair in the black of its outlines, in the group that holds the head. */
export function inkHair({ body, box }, colour) {
  const [before, head, after] = body.split(/(<g transform="matrix\(\.99789[\s\S]*?<\/g>)/);
  return { box, body: `${before}${head.replaceAll('#000', `#${colour}`)}${after}` };
}

/** Flat icon => the same icon as another medium. `tint` in [0, 1) varies the treatment. */
export function asMedium({ body, box }, medium, tint) {
  const size = Number(box.split(' ')[2]);
  const id = `m${fragments++}`;
  const filtered = (filter) =>
    `<filter id="${id}" x="-.2" y="-.2" width="1.4" height="1.4">${filter}</filter><g filter="url(#${id})">${body}</g>`;
  if (medium === 'photo') {
    const light =
      `<linearGradient id="${id}l" x2=".6" y2="1"><stop stop-color="#fff" stop-opacity=".4"/>` +
      `<stop offset="1" stop-opacity=".22"/></linearGradient>`;
    const lit =
      `<mask id="${id}k" mask-type="alpha">${body}</mask>` +
      `<rect width="${size}" height="${size}" fill="url(#${id}l)" mask="url(#${id}k)"/>`;
    const [dx, dy, softness] = [0.03, 0.05, 0.035].map((part) => part * size);
    const shadow = `<feDropShadow dx="${dx}" dy="${dy}" stdDeviation="${softness}" flood-opacity=".6"/>`;
    return { box, body: `${light}${filtered(shadow)}${lit}` };
  }
  if (medium === 'painting') {
    // blunt brush, then coarse strokes of light and dark pigment inside the shape
    const brush = `<feMorphology operator="dilate" radius="${size * 0.02}" result="shape"/>`;
    const strokes =
      `<feTurbulence type="fractalNoise" baseFrequency="${2 / size} ${9 / size}" numOctaves="2" ` +
      `seed="${Math.floor(tint * 999)}"/>` +
      '<feColorMatrix values="0 0 0 .9 .05  0 0 0 .9 .05  0 0 0 .9 .05  0 0 0 0 1" result="strokes"/>' +
      '<feBlend in="shape" in2="strokes" mode="soft-light"/><feComposite in2="shape" operator="in"/>';
    return { box, body: filtered(brush + strokes) };
  }
  if (medium === 'hand drawing') {
    const lines = body
      .replace(/\b(fill|stroke)="(?!none)[^"]*"/g, (_, kind) => (kind === 'fill' ? 'fill="#fff"' : 'stroke="#222"'))
      .replace(/(?<![-\w])(opacity|fill-opacity|stroke-opacity|stroke-width)="[^"]*"/g, '');
    return { box, body: `<g fill="#fff" stroke="#222" stroke-width="${size * 0.022}">${lines}</g>` };
  }
  return { body, box };
}

/** Places a fragment in a 64-unit picture: flipped, turned and scaled about `anchor`, then moved. */
export function place({ body, box }, { flip = false, scale = 1, turn = 0, move = [0, 0], anchor = [32, 32] }) {
  const [x, y] = anchor;
  const transform =
    `translate(${x + move[0]} ${y + move[1]}) rotate(${turn}) ` +
    `scale(${flip ? -scale : scale} ${scale}) translate(${-x} ${-y})`;
  return `<g transform="${transform}"><svg width="64" height="64" viewBox="${box}">${body}</svg></g>`;
}

/** Markup in 64 units => RGB pixels. */
export function rasterize(markup, background, size_px) {
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 64 64">` +
    `<rect width="64" height="64" fill="#${background}"/>${markup}</svg>`;
  return new Resvg(svg, { fitTo: { mode: 'width', value: size_px }, font: { loadSystemFonts: false } }).render();
}

/** RGBA pixels => an RGB PNG file. */
export function writePng(path, rgba, size_px) {
  const rows = Buffer.alloc(size_px * (1 + 3 * size_px));
  for (let pixel = 0; pixel < size_px * size_px; pixel++) {
    const row = Math.floor(pixel / size_px);
    rgba.copy(rows, pixel * 3 + row + 1, pixel * 4, pixel * 4 + 3);
  }
  const header = Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 8, 2, 0, 0, 0]);
  header.writeUInt32BE(size_px, 0);
  header.writeUInt32BE(size_px, 4);
  const chunk = (kind, data) => {
    const tail = Buffer.concat([Buffer.from(kind), data]);
    const [length, check] = [data.length, crc32(tail)].map((n) => {
      const b = Buffer.alloc(4);
      b.writeUInt32BE(n);
      return b;
    });
    return Buffer.concat([length, tail, check]);
  };
  const signature = Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]);
  writeFileSync(
    path,
    Buffer.concat([signature, chunk('IHDR', header), chunk('IDAT', deflateSync(rows)), chunk('IEND', Buffer.alloc(0))]),
  );
}
