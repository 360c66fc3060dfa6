// Pictures without words, for the autoencoder alone: many more kinds of drawing than the captions know. Every DiceBear
// style but Adventurer and its neutral sister, which are held back; icons of thirteen sets in any colour; random outlines.
import { avatar, avatarSchema, icon, iconSet, place, rasterize } from './draw.mjs';
import { bend, drawLook, inLook, outlined } from './looks.mjs';
import { sticker } from './media.mjs';

// prettier-ignore
const STYLES = [
  'avataaars', 'avataaarsNeutral', 'bigEars', 'bigEarsNeutral', 'bigSmile', 'bottts', 'botttsNeutral', 'croodles',
  'croodlesNeutral', 'dylan', 'funEmoji', 'lorelei', 'loreleiNeutral', 'micah', 'miniavs', 'notionists',
  'notionistsNeutral', 'openPeeps', 'personas', 'pixelArt', 'shapes', 'rings', 'thumbs', 'toonHead',
];
// prettier-ignore
const COLOURED = [
  'fluent-emoji-flat', 'twemoji', 'emojione', 'fxemoji', 'streamline-emojis', 'flat-color-icons',
  'streamline-freehand-color', 'streamline-ultimate-color', 'icon-park',
];
const LINES = ['tabler', 'lucide', 'ph', 'game-icons'];

const channel = (random) => Math.floor(256 * random.next()).toString(16).padStart(2, '0');
const anyColour = (random) => channel(random) + channel(random) + channel(random);
/** Black and white are the commonest colours of drawings. */
const inkColour = (random) => (random.chance(0.5) ? random.pick(['000000', '1b1a1f', 'ffffff']) : anyColour(random));

/** Any face of any style; a third of them in colours of no palette. */
function anyAvatar(random) {
  const style = random.pick(STYLES);
  const options = { seed: String(random.next()) };
  if (random.chance(0.35)) {
    for (const name of Object.keys(avatarSchema(style))) {
      if (name.endsWith('Color') && name !== 'backgroundColor') options[name] = [anyColour(random)];
    }
  }
  return avatar(style, options);
}

function anyIcon(random, sets) {
  const set = random.pick(sets);
  const { body, box } = icon(set, random.pick(Object.keys(iconSet(set).icons)));
  return { box, body: `<g color="#${inkColour(random)}">${body}</g>` };
}

/** Points about a centre, joined smoothly: a head, a lock of hair, a blot. */
function blob(random, [x, y], radius) {
  const count = Math.floor(random.between(5, 10));
  const points = [...Array(count).keys()].map((n) => {
    const angle = (2 * Math.PI * n) / count;
    const reach = radius * random.between(0.7, 1.15);
    return [x + reach * Math.cos(angle), y + reach * Math.sin(angle)];
  });
  const middle = (n) => [0, 1].map((k) => (points[n % count][k] + points[(n + 1) % count][k]) / 2);
  const arcs = points.map((_, n) => `Q${points[(n + 1) % count]} ${middle(n + 1)}`);
  return `M${middle(0)}${arcs.join('')}Z`;
}

function curve(random) {
  const point = () => `${random.between(0, 64)} ${random.between(0, 64)}`;
  const start = point();
  return random.chance(0.5) ? `M${start}Q${point()} ${point()}` : `M${start}C${point()} ${point()} ${point()}`;
}

/** Two eyes with pupils, brows over them and a mouth, each in its own way. */
function features(random, [x, y], radius) {
  const [gap, eye] = [radius * random.between(0.3, 0.5), radius * random.between(0.08, 0.28)];
  const look = [random.between(-0.4, 0.4) * eye, random.between(-0.4, 0.4) * eye];
  const line = `fill="none" stroke="#${inkColour(random)}" stroke-linecap="round" stroke-width="${random.between(0.4, 1.6)}"`;
  const parts = [-1, 1].map((side) => {
    const [cx, cy] = [x + side * gap, y - radius * 0.1];
    const white = random.chance(0.7) ? `<ellipse cx="${cx}" cy="${cy}" rx="${eye}" ry="${eye * random.between(0.6, 1.3)}" fill="#fff" ${line.slice(12)}/>` : '';
    const pupil = `<circle cx="${cx + look[0]}" cy="${cy + look[1]}" r="${eye * random.between(0.3, 0.6)}" fill="#${random.chance(0.7) ? '000' : anyColour(random)}"/>`;
    const lift = eye * random.between(1.2, 2.2);
    const slant = eye * random.between(-0.6, 0.6);
    const brow = `<path d="M${cx - eye} ${cy - lift + slant}Q${cx} ${cy - lift - eye * 0.5} ${cx + eye} ${cy - lift - slant}" ${line}/>`;
    return white + pupil + brow;
  });
  const [wide, depth] = [radius * random.between(0.15, 0.5), radius * random.between(-0.3, 0.4)];
  const open = random.chance(0.4) ? line.replace('none', `#${anyColour(random)}`) : line;
  const closed = random.chance(0.5) ? 'Z' : '';
  const low = y + radius * 0.5;
  return `${parts.join('')}<path d="M${x - wide} ${low}Q${x} ${low + depth} ${x + wide} ${low}${closed}" ${open}/>`;
}

/** Random outlines: blobs and curves, often with a face. */
function scribble(random) {
  const shapes = [...Array(Math.floor(random.between(1, 7)))].map(() => {
    const stroke = random.chance(0.7)
      ? `stroke="#${inkColour(random)}" stroke-width="${random.between(0.3, 2.5)}" stroke-linejoin="round"`
      : '';
    const centre = [random.between(8, 56), random.between(8, 56)];
    const radius = random.between(3, 28);
    if (random.chance(0.3)) return `<path d="${curve(random)}" fill="none" stroke-linecap="round" ${stroke || 'stroke="#000"'}/>`;
    const face = radius > 8 && random.chance(0.5) ? features(random, centre, radius) : '';
    return `<path d="${blob(random, centre, radius)}" fill="#${anyColour(random)}" ${stroke}/>${face}`;
  });
  return { box: '0 0 64 64', body: `<g>${shapes.join('')}</g>` };
}

function anyGround(random) {
  if (random.chance(0.85)) return random.chance(0.3) ? 'ffffff' : anyColour(random);
  const stop = (at) => `<stop offset="${at}" stop-color="#${anyColour(random)}"/>`;
  return (
    `<linearGradient id="ground" x2="${random.next()}" y2="${random.next()}">${stop(0)}${stop(1)}</linearGradient>` +
    '<rect width="64" height="64" fill="url(#ground)"/>'
  );
}

function anywhere(random, look, [least, most]) {
  return {
    flip: random.chance(0.5),
    stretch: look.stretch,
    skew: look.skew,
    scale: random.between(least, most),
    turn: random.chance(0.6) ? random.between(-20, 20) : 0,
    move: [random.between(-8, 8), random.between(-8, 8)],
  };
}

const KINDS = {
  avatar: { share: 0.5, scale: [0.7, 1.5] },
  icon: { share: 0.2, scale: [0.5, 1.2] },
  line: { share: 0.1, scale: [0.4, 1.3] },
  scribble: { share: 0.2, scale: [0.8, 1.4] },
};

function drawKind(random) {
  let roll = random.next();
  return Object.keys(KINDS).find((kind) => (roll -= KINDS[kind].share) < 0) ?? 'scribble';
}

function fragmentOf(random, kind, look) {
  if (kind === 'avatar') return inLook(anyAvatar(random), look);
  if (kind === 'icon') return inLook(anyIcon(random, COLOURED), look);
  if (kind === 'scribble') return scribble(random);
  const lines = anyIcon(random, LINES);
  return random.chance(0.3) ? outlined(lines, { width: random.between(0.01, 0.05), ink: inkColour(random) }) : lines;
}

/** Random numbers => {pixels, labels}: one drawing, or several beside and over each other. */
export function paintDrawing(random, size_px) {
  const look = drawLook(random);
  const kind = drawKind(random);
  const count = kind === 'line' ? random.pick([1, 2, 3]) : random.pick([1, 1, 1, 2]);
  const parts = [...Array(count)].map((_, n) => {
    const fragment = fragmentOf(random, n ? drawKind(random) : kind, look);
    return place(random.chance(0.06) ? sticker(fragment) : fragment, anywhere(random, look, KINDS[kind].scale));
  });
  const pixels = rasterize(parts.join(''), anyGround(random), size_px);
  return { pixels: bend(pixels, size_px, look.bend, random), labels: { kind } };
}
