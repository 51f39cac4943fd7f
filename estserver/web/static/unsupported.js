/* Loaded only by browsers that know no modules: they cannot make a key here. Old syntax on purpose. */
(function () {
  var notice = document.getElementById('unsupported');
  if (notice) notice.hidden = false;
})();
