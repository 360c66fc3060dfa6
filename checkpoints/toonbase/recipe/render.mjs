// Renders the training set and the held-out set: 64 px pictures with true captions, a table of their attributes.
// node render.mjs <out> [train count] [held-out count] [workers] [seed]
import { fork } from 'node:child_process';
import { appendFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { BACKGROUND, FACES, HAIR, SKIN } from './faces.mjs';
import { BARE, HELD, ICON_SETS, OBJECTS, OBJECT_MEDIA } from './objects.mjs';
import { asMedium, avatar, icon, inkHair, place, rasterize, withGlasses, writePng } from './draw.mjs';
import { blur, noise, pixelate, warp } from './degrade.mjs';
import { dice, hash } from './random.mjs';

const [OUT, TRAIN = '36000', HELDOUT = '1500', WORKERS = String(availableParallelism()), SEED = '0'] =
  process.argv.slice(2);
const SIZE_PX = 64;
const article = (words) => (/^[aeiou]/.test(words) ? `an ${words}` : `a ${words}`);

/** One combination in ten is never trained on; words are hashed, so the split does not depend on the counts. */
const isHeldOut = (...labels) => hash(`held out ${labels.join('|')}`) % 10 === 0;

/** Draws labels until the combination belongs to the split. */
function drawUntil(heldOut, draw, key) {
  for (;;) {
    const labels = draw();
    if (isHeldOut(...key.map((name) => labels[name])) === heldOut) return labels;
  }
}

/** A colour near `hex`, still called by the same name. */
function jitter(random, hex, amount = 9) {
  const channels = hex
    .match(/../g)
    .map((pair) => Math.round(Math.min(255, Math.max(0, parseInt(pair, 16) + random.between(-amount, amount)))));
  return channels.map((value) => value.toString(16).padStart(2, '0')).join('');
}

function drawFaceLabels(random) {
  const medium = random.pick(Object.keys(FACES));
  const expressions = Object.keys(FACES[medium].expressions);
  return {
    medium,
    gender: random.pick(['girl', 'boy']),
    hair: random.pick(Object.keys(HAIR)),
    background: random.pick(Object.keys(BACKGROUND)),
    glasses: random.chance(0.15),
    expression: random.pick(expressions.includes('smiling') ? ['smiling', ...expressions] : expressions),
  };
}

/** Labels => the portrait. */
function faceFragment(random, { medium, gender, hair, glasses, expression }) {
  const face = FACES[medium];
  const look = random.pick(face[gender]);
  const colour = jitter(random, HAIR[hair]);
  const options = {
    seed: String(random.next()),
    ...face.fixed,
    ...face.expressions[expression],
    ...(typeof look === 'string' ? { [face.hair]: [look] } : look),
    [face.colour]: [colour],
    // brown hair vanishes on the darkest skin
    [face.skin]: [random.pick(hair === 'brown' ? SKIN.slice(0, 3) : SKIN)],
    ...(face.beard && gender === 'boy' && random.chance(0.06) ? face.beard : {}),
    ...(glasses && !face.glasses.draw ? face.glasses : {}),
  };
  if (face.style === 'toonHead' && gender === 'girl') options.clothes = ['dress', 'shirt', 'turtleNeck', 'dress'];
  const fragment = avatar(face.style, options);
  const inked = face.inkedHair ? inkHair(fragment, colour) : fragment;
  return glasses && face.glasses.draw ? withGlasses(inked, face.glasses.draw) : inked;
}

function facePlacement(random, { bust = false, upright = false }) {
  const flip = random.chance(0.5);
  if (upright) return { flip, scale: random.between(0.82, 1.02), anchor: [32, 64] };
  // a bust stands on the lower edge; a head floats
  if (bust) return { flip, scale: random.between(0.85, 1.08), turn: random.between(-4, 4), anchor: [32, 66] };
  return {
    flip,
    scale: random.between(0.8, 1.08),
    turn: random.between(-14, 14),
    move: [random.between(-4, 4), random.between(-4, 4)],
  };
}

function paintFace(random, heldOut) {
  const labels = drawUntil(heldOut, () => drawFaceLabels(random), ['medium', 'gender', 'hair', 'background']);
  return {
    kind: 'face',
    ...labels,
    markup: place(faceFragment(random, labels), facePlacement(random, FACES[labels.medium])),
  };
}

function objectFragment(random, object, medium) {
  const fragments = ICON_SETS.map((set) => icon(set, OBJECTS[object])).filter(Boolean);
  return asMedium(random.pick(fragments), medium, random.next());
}

function paintObject(random, heldOut) {
  const draw = () => ({
    medium: random.pick(OBJECT_MEDIA),
    background: random.pick(Object.keys(BACKGROUND)),
    // the prompts of the study ask for these two
    object: random.chance(0.04) ? random.pick(['butterfly', 'mountain']) : random.pick(Object.keys(OBJECTS)),
  });
  const labels = drawUntil(heldOut, draw, ['object', 'medium', 'background']);
  const placement = {
    flip: random.chance(0.5),
    scale: random.between(0.6, 0.95),
    turn: random.between(-10, 10),
    move: [random.between(-4, 4), random.between(-4, 4)],
  };
  return { kind: 'object', ...labels, markup: place(objectFragment(random, labels.object, labels.medium), placement) };
}

/** A face with a thing: on a mountain, or holding something. */
function paintScene(random, heldOut) {
  const labels = drawUntil(heldOut, () => drawFaceLabels(random), ['medium', 'gender', 'hair', 'background']);
  const climbing = random.chance(0.45);
  const object = climbing ? 'mountain' : random.pick(HELD);
  const side = random.pick([-1, 1]);
  const thing = objectFragment(random, object, OBJECT_MEDIA.includes(labels.medium) ? labels.medium : 'flat icon');
  const face = faceFragment(random, labels);
  const drawn = climbing
    ? place(thing, { flip: side > 0, scale: random.between(0.92, 1.02), move: [0, 6] }) +
      place(face, {
        flip: side > 0,
        scale: random.between(0.42, 0.5),
        turn: side * 8,
        move: [side * random.between(8, 14), random.between(-12, -6)],
      })
    : place(face, {
        flip: random.chance(0.5),
        scale: random.between(0.8, 0.95),
        anchor: [32, 64],
        move: [-side * 6, 0],
      }) +
      place(thing, {
        scale: random.between(0.34, 0.42),
        turn: random.between(-10, 10),
        move: [side * random.between(17, 20), random.between(15, 19)],
      });
  return {
    kind: 'scene',
    ...labels,
    object,
    markup: drawn,
    action: climbing ? 'climbing up the mountain' : `holding ${article(object)}`,
  };
}

/** What the caption says of the person or thing; the held-out set always says what tells it from training. */
function subject(random, { kind, gender, hair, glasses, expression, background, object, action }, heldOut) {
  const onBackground = heldOut || random.chance(0.5) ? ` on ${article(background)} background` : '';
  if (kind === 'object') return { adjective: '', noun: object, rest: onBackground };
  const withHair = heldOut || random.chance(0.8) ? ` with ${hair} hair` : '';
  const withGlassesOn = glasses && random.chance(0.95) ? ' wearing glasses' : '';
  const adjective = expression !== 'plain' && random.chance(0.5) ? `${expression} ` : '';
  return { adjective, noun: gender, rest: `${withHair}${withGlassesOn}${action ? ` ${action}` : ''}${onBackground}` };
}

const LOW_QUALITY = ['ugly', 'disfigured', 'deformed', 'low resolution'];

/** Words that are true of the spoiled picture, in the order in which people write them; never none. */
function qualityWords(random, spoiled) {
  const fitting = { warped: ['ugly', 'disfigured', 'deformed'], coarse: ['ugly', 'low resolution'], both: LOW_QUALITY }[
    spoiled
  ];
  const words = fitting.filter(() => random.chance(0.6));
  return (words.length ? words : [random.pick(fitting)]).join(', ');
}

function caption(random, labels, heldOut) {
  const { medium, degraded } = labels;
  const { adjective, noun, rest } = subject(random, labels, heldOut);
  const thing = BARE.has(noun) ? `${noun}${rest}` : `${article(adjective + noun)}${rest}`;
  const form = random.next();
  if (degraded) {
    const words = qualityWords(random, degraded);
    return form < 0.12 ? words : `${article(`${words} ${medium}`)} of ${thing}`;
  }
  if (form < 0.05 && medium !== 'photo') {
    const claimed = random.chance(0.6)
      ? 'photo'
      : random.pick(['photo', 'painting', 'hand drawing', 'picture'].filter((word) => word !== medium));
    return `a ${claimed} of ${thing} in the style of ${medium}`;
  }
  if (form < 0.17) return `${random.chance(0.5) ? 'a picture of ' : ''}${thing} in the style of ${medium}`;
  return `a ${medium} of ${thing}`;
}

function spoil(random, pixels, how) {
  const coarse = random.pick([blur, pixelate, noise]);
  const warped = how === 'coarse' ? pixels : warp(pixels, SIZE_PX, random);
  return how === 'warped' ? warped : coarse(warped, SIZE_PX, random);
}

function renderOne(split, index) {
  const random = dice(`${SEED} ${split} ${index}`);
  const heldOut = split === 'heldout';
  const roll = random.next();
  const painted = (roll < 0.67 ? paintFace : roll < 0.92 ? paintObject : paintScene)(random, heldOut);
  const degraded = !heldOut && random.chance(0.06) ? random.pick(['warped', 'coarse', 'both']) : null;
  const { markup, action, ...labels } = { ...painted, degraded };
  const name = String(index).padStart(5, '0');
  const pixels = rasterize(markup, jitter(random, BACKGROUND[labels.background], 4), SIZE_PX).pixels;
  writePng(`${OUT}/${split}/${name}.png`, degraded ? spoil(random, pixels, degraded) : pixels, SIZE_PX);
  const text = caption(random, { ...labels, action }, heldOut);
  writeFileSync(`${OUT}/${split}/${name}.txt`, text);
  return JSON.stringify({ file: `${split}/${name}.png`, split, ...labels, caption: text });
}

/** Every WORKERS-th picture of both splits; its table rows go to a file of its own. */
function renderShard(shard) {
  for (const [split, count] of [
    ['train', TRAIN],
    ['heldout', HELDOUT],
  ]) {
    const rows = [];
    for (let index = shard; index < Number(count); index += Number(WORKERS)) rows.push(renderOne(split, index));
    appendFileSync(`${OUT}/rows-${shard}.jsonl`, `${rows.join('\n')}\n`);
  }
}

async function main() {
  for (const split of ['train', 'heldout']) mkdirSync(`${OUT}/${split}`, { recursive: true });
  const shards = [...Array(Number(WORKERS)).keys()];
  await Promise.all(
    shards.map(
      (shard) =>
        new Promise((done, failed) => {
          fork(import.meta.filename, process.argv.slice(2), { env: { ...process.env, SHARD: String(shard) } }).on(
            'exit',
            (code) => (code === 0 ? done() : failed(new Error(`worker ${shard} ended with ${code}`))),
          );
        }),
    ),
  );
  const rows = shards.flatMap((shard) => readFileSync(`${OUT}/rows-${shard}.jsonl`, 'utf8').trim().split('\n'));
  writeFileSync(`${OUT}/attributes.jsonl`, `${rows.sort().join('\n')}\n`);
  for (const shard of shards) rmSync(`${OUT}/rows-${shard}.jsonl`);
}

if (process.env.SHARD) renderShard(Number(process.env.SHARD));
else await main();
