from importlib.metadata import distribution
from pathlib import Path

project = 'adamod_fastai'
release = distribution(project).version
author = distribution(project).metadata['Author']
html_title = project

extensions = ['myst_nb']
nb_execution_mode = 'off'
nb_merge_streams = True
nb_output_stderr = 'remove'
nb_code_prompt_show = nb_code_prompt_hide = 'code'
nb_ipywidgets_js = {}
myst_enable_extensions = ['amsmath', 'colon_fence', 'dollarmath', 'html_image']
myst_heading_anchors = 4

add_module_names = False
toc_object_entries = False

html_theme = 'furo'
html_theme_options = {'footer_icons': [{'name': 'Repository', 'url': o.split(', ')[1], 'html': 'Repository', 'class': ''}
                                       for o in distribution(project).metadata.get_all('Project-URL', []) if o.startswith('Repository')]}
mathjax = distribution('sphinx-mathjax-offline').locate_file('sphinx-mathjax-offline/static/mathjax/tex-svg-full.js')
html_static_path = ['static', str(mathjax)]
html_css_files = ['site.css']
html_search_scorer = str(Path(__file__).with_name('scorer.js'))
mathjax_path = 'tex-svg-full.js'
mathjax3_config = {'options': {'enableMenu': False}}
html_use_index = False
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it would fetch each page, which browsers refuse when the site is read from files
