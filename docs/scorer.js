// How Sphinx orders what a search finds: the API entry of that very name, then the page whose title has all the words, tutorials first
const askedFor = (new URLSearchParams(location.search).get('q') || '').toLowerCase().match(/\w+/g) || []
var Scorer = {
  objNameMatch: 60, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
  score: ([page, title, anchor, description, score, file, kind]) => {
    const inTitle = kind !== 'object' && askedFor.every(o => title.toLowerCase().includes(o))
    return score + 20*inTitle + 2*page.startsWith('tutorials/')
  },
}
