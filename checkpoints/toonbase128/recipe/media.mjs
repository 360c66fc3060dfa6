// Treatments that make a flat drawing another medium, and glasses and ink for styles that have none of their own.
import { boxSize, filtered, uniqueId } from './draw.mjs';

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

/** Cuts a bust below the neck (a part of the box), so that a style of busts also has heads alone. */
export function headOnly({ body, box }, neck) {
  const id = uniqueId();
  const [left, top, width, height] = box.split(' ').map(Number);
  const cut = `<clipPath id="${id}"><rect x="${left - width}" y="${top - height}" width="${3 * width}" height="${height * (1 + neck)}"/></clipPath>`;
  return { box, body: `${cut}<g clip-path="url(#${id})">${body}</g>` };
}

/** White paper around the shape and its shadow. */
export function sticker(fragment) {
  const size = boxSize(fragment);
  const paper =
    `<feMorphology in="SourceAlpha" operator="dilate" radius="${size * 0.035}" result="fat"/>` +
    '<feFlood flood-color="#fff"/><feComposite in2="fat" operator="in" result="paper"/>' +
    `<feDropShadow in="paper" dx="${size * 0.008}" dy="${size * 0.012}" stdDeviation="${size * 0.012}" flood-opacity=".55"/>` +
    '<feMerge><feMergeNode/><feMergeNode in="SourceGraphic"/></feMerge>';
  return filtered(fragment, paper);
}

function photographed(fragment) {
  const size = boxSize(fragment);
  const id = uniqueId();
  const light =
    `<linearGradient id="${id}l" x2=".6" y2="1"><stop stop-color="#fff" stop-opacity=".4"/>` +
    '<stop offset="1" stop-opacity=".22"/></linearGradient>';
  const lit =
    `<mask id="${id}k" mask-type="alpha">${fragment.body}</mask>` +
    `<rect width="${size}" height="${size}" fill="url(#${id}l)" mask="url(#${id}k)"/>`;
  const [dx, dy, softness] = [0.03, 0.05, 0.035].map((part) => part * size);
  const shadow = `<feDropShadow dx="${dx}" dy="${dy}" stdDeviation="${softness}" flood-opacity=".6"/>`;
  const { box, body } = filtered(fragment, shadow);
  return { box, body: `${light}${body}${lit}` };
}

/** Blunt brush, then coarse strokes of light and dark pigment inside the shape. */
function painted(fragment, tint) {
  const size = boxSize(fragment);
  const brush = `<feMorphology operator="dilate" radius="${size * 0.02}" result="shape"/>`;
  const strokes =
    `<feTurbulence type="fractalNoise" baseFrequency="${2 / size} ${9 / size}" numOctaves="2" ` +
    `seed="${Math.floor(tint * 999)}"/>` +
    '<feColorMatrix values="0 0 0 .9 .05  0 0 0 .9 .05  0 0 0 .9 .05  0 0 0 0 1" result="strokes"/>' +
    '<feBlend in="shape" in2="strokes" mode="soft-light"/><feComposite in2="shape" operator="in"/>';
  return filtered(fragment, brush + strokes);
}

function drawnByHand(fragment) {
  const lines = fragment.body
    .replace(/\b(fill|stroke)="(?!none)[^"]*"/g, (_, kind) => (kind === 'fill' ? 'fill="#fff"' : 'stroke="#222"'))
    .replace(/(?<![-\w])(opacity|fill-opacity|stroke-opacity|stroke-width)="[^"]*"/g, '');
  const pen = `fill="#fff" stroke="#222" stroke-width="${boxSize(fragment) * 0.022}"`;
  return { box: fragment.box, body: `<g ${pen}>${lines}</g>` };
}

/** Flat icon => the same icon as another medium. `tint` in [0, 1) varies the treatment. */
export function asMedium(fragment, medium, tint) {
  if (medium === 'photo') return photographed(fragment);
  if (medium === 'painting') return painted(fragment, tint);
  if (medium === 'hand drawing') return drawnByHand(fragment);
  return medium === 'sticker' ? sticker(fragment) : fragment;
}
