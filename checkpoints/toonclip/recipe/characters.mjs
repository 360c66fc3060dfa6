// Renders characters and things without captions, several views of each: what stays when expression, pose and background
// change is what the similarity of two pictures shall tell. Media, designs and parts are those of the captioned set.
// node characters.mjs <out> [characters] [workers]
import { fork } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import * as collection from '../../toonbase/recipe/node_modules/@dicebear/collection/lib/index.js';
import { BACKGROUND, FACES, HAIR, SKIN } from '../../toonbase/recipe/faces.mjs';
import { HELD, ICON_SETS, OBJECTS, OBJECT_MEDIA } from '../../toonbase/recipe/objects.mjs';
import { asMedium, avatar, icon, inkHair, place, rasterize, withGlasses, writePng } from '../../toonbase/recipe/draw.mjs';
import { dice } from '../../toonbase/recipe/random.mjs';

const [OUT, CHARACTERS = '14000', WORKERS = String(availableParallelism())] = process.argv.slice(2);
const SIZE_PX = 64;
const VIEWS = 4;
/** What a mood changes; everything else belongs to the character. */
const MOOD = ['eyes', 'eyebrows', 'mouth', 'mood', 'face'];

const hex = (random, base, amount) =>
  [0, 2, 4]
    .map((at) => Math.round(parseInt(base.slice(at, at + 2), 16) + random.between(-amount, amount)))
    .map((value) => Math.min(255, Math.max(0, value)).toString(16).padStart(2, '0'))
    .join('');
/** A colour with a name, or any colour. */
const hairColour = (random) => hex(random, ...(random.chance(0.5) ? [random.pick(Object.values(HAIR)), 9] : ['808080', 128]));

const TRAITS = {
  face: {
    look: ({ style, hair }, random) => random.pick(collection[style].schema.properties[hair].items.enum),
    colour: (_, random) => hairColour(random),
    skin: (_, random) => hex(random, random.pick(SKIN), 16),
    seed: (_, random) => String(random.next()),
  },
  object: {
    object: (_, random) => random.pick(Object.keys(OBJECTS)),
    medium: (_, random) => random.pick(OBJECT_MEDIA),
    set: (_, random) => random.pick(ICON_SETS),
    tint: (_, random) => random.next(),
  },
};

/** Index => medium and traits. An odd one is the twin of the one before: alike but for one trait. */
function character(index) {
  const random = dice(`character ${index >> 1}`);
  const kind = random.chance(0.75) ? 'face' : 'object';
  const face = FACES[random.pick(Object.keys(FACES))];
  const traits = Object.fromEntries(Object.entries(TRAITS[kind]).map(([name, draw]) => [name, draw(face, random)]));
  if (index % 2) {
    const another = dice(`twin ${index}`);
    const name = another.pick(Object.keys(traits).slice(0, 3));
    const before = traits[name];
    while (traits[name] === before) traits[name] = TRAITS[kind][name](face, another);
  }
  return { kind, face, traits };
}

/** A face in some mood, now and then with glasses. */
function faceFragment(random, face, { look, colour, skin, seed }) {
  const schema = collection[face.style].schema.properties;
  const moods = MOOD.filter((name) => schema[name]).map((name) => [name, [random.pick(schema[name].items.enum)]]);
  const glasses = random.chance(0.1);
  const fragment = avatar(face.style, {
    ...face.fixed,
    seed,
    ...Object.fromEntries(moods),
    [face.hair]: [look],
    [face.colour]: [colour],
    [face.skin]: [skin],
    ...(glasses && !face.glasses.draw ? face.glasses : {}),
  });
  const inked = face.inkedHair ? inkHair(fragment, colour) : fragment;
  return glasses && face.glasses.draw ? withGlasses(inked, face.glasses.draw) : inked;
}

const thingFragment = ({ object, medium, set, tint }) =>
  asMedium(
    [set, ...ICON_SETS].map((name) => icon(name, OBJECTS[object])).find(Boolean),
    medium,
    tint,
  );

const thing = (random, object) =>
  thingFragment({ object, medium: 'flat icon', set: random.pick(ICON_SETS), tint: 0 });

/** A face alone, or smaller with a mountain behind it or a thing beside it. */
function facePicture(random, face, fragment) {
  const flip = random.chance(0.5);
  const side = random.pick([-1, 1]);
  const roll = random.next();
  if (roll < 0.08) {
    const pose = { flip, scale: random.between(0.42, 0.6), turn: side * 8, move: [side * random.between(0, 14), -8] };
    return place(thing(random, 'mountain'), { scale: 1, move: [0, 6] }) + place(fragment, pose);
  }
  if (roll < 0.16)
    return (
      place(fragment, { flip, scale: random.between(0.75, 0.95), anchor: [32, 64], move: [-side * 6, 0] }) +
      place(thing(random, random.pick(HELD)), { scale: 0.38, move: [side * 18, 17] })
    );
  const scale = random.between(0.75, 1.1);
  if (face.bust) return place(fragment, { flip, scale, turn: random.between(-4, 4), anchor: [32, 66] });
  return place(fragment, { flip, scale, turn: random.between(-14, 14), move: [random.between(-4, 4), random.between(-4, 4)] });
}

function thingPicture(random, fragment) {
  const move = [random.between(-5, 5), random.between(-5, 5)];
  return place(fragment, { flip: random.chance(0.5), scale: random.between(0.6, 0.95), turn: random.between(-12, 12), move });
}

function renderView(index, view) {
  const random = dice(`character ${index} view ${view}`);
  const { kind, face, traits } = character(index);
  const markup =
    kind === 'face'
      ? facePicture(random, face, faceFragment(random, face, traits))
      : thingPicture(random, thingFragment(traits));
  const background = hex(random, random.pick(Object.values(BACKGROUND)), 16);
  const name = `${String(index).padStart(5, '0')}-${view}.png`;
  writePng(`${OUT}/${name}`, rasterize(markup, background, SIZE_PX).pixels, SIZE_PX);
}

if (process.env.SHARD) {
  for (let index = Number(process.env.SHARD); index < Number(CHARACTERS); index += Number(WORKERS))
    for (let view = 0; view < VIEWS; view++) renderView(index, view);
} else {
  mkdirSync(OUT, { recursive: true });
  for (let shard = 0; shard < Number(WORKERS); shard++)
    fork(import.meta.filename, process.argv.slice(2), { env: { ...process.env, SHARD: String(shard) } }).on(
      'exit',
      (code) => (process.exitCode ||= code),
    );
}
