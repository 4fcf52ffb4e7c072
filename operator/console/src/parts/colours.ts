/** Of curves, ranks and parts: told apart also by most who see colours differently, and dark or light enough. */
export const COLOURS = {
  light: ['#3b5bdb', '#d9480f', '#2b8a3e', '#9c36b5', '#a8680a', '#0b7285'],
  dark: ['#91a7ff', '#ffa94d', '#69db7c', '#e599f7', '#ffd43b', '#66d9e8'],
};
