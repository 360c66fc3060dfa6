// Objects: icons that several sets draw alike. Every name was checked by eye on contact sheets.

const words = (text) => text.trim().split(/\s+/);
const SAME = words(`
  butterfly cat dog bird fish rabbit frog turtle snail pig cow horse elephant mouse penguin owl duck whale crab
  octopus spider snake shark fox koala mountain cactus sun cloud rainbow star fire snowman rose sunflower tulip
  mushroom banana cherries grapes lemon pear strawberry watermelon pineapple carrot tomato eggplant bread hamburger
  pizza cookie egg bus bicycle rocket helicopter tractor house teapot umbrella guitar violin trumpet drum key
  balloon crown bell candle chair pencil hammer tent castle camera panda basketball anchor trophy backpack dress
`);
/** Caption word: icon key, where they differ. */
const RENAMED = {
  tree: 'deciduous-tree',
  'pine tree': 'evergreen-tree',
  'palm tree': 'palm-tree',
  apple: 'red-apple',
  corn: 'ear-of-corn',
  cheese: 'cheese-wedge',
  cake: 'birthday-cake',
  donut: 'doughnut',
  car: 'automobile',
  truck: 'delivery-truck',
  train: 'locomotive',
  book: 'closed-book',
  cup: 'hot-beverage',
  clock: 'alarm-clock',
  gift: 'wrapped-gift',
  lamp: 'light-bulb',
  sofa: 'couch-and-lamp',
  heart: 'red-heart',
  hat: 'top-hat',
  ladybug: 'lady-beetle',
  lion: 'lion',
  moon: 'crescent-moon',
  diamond: 'gem-stone',
  ball: 'soccer-ball',
  orange: 'tangerine',
  lantern: 'red-paper-lantern',
  shirt: 't-shirt',
  clover: 'four-leaf-clover',
  leaf: 'maple-leaf',
  flower: 'hibiscus',
  chick: 'baby-chick',
  plane: 'airplane',
  boat: 'sailboat',
};
export const OBJECTS = Object.fromEntries([...SAME.map((name) => [name, name]), ...Object.entries(RENAMED)]);
/** Words that take no article. */
export const BARE = new Set(['cherries', 'grapes', 'cheese', 'bread', 'corn']);
/** What a hand could hold, or what could sit on it. */
export const HELD = words(`
  balloon book umbrella guitar flower key apple gift camera cup heart star cake candle butterfly cat dog
`);
export const ICON_SETS = ['fluent-emoji-flat', 'twemoji', 'emojione'];
export const OBJECT_MEDIA = ['photo', 'painting', 'hand drawing', 'flat icon', 'sticker'];
